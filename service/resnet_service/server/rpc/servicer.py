"""The methods of the protocol's service, and their handlers for gRPC.

Messages are read and written here, not by gRPC: a handler of a unary call would get the message only once all
of it is in memory. These read it when they have checked the API key and reserved a place in the queue. What
is sent is the same.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final, TypeVar, cast

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message

from resnet_service.batching import ConcurrencyLimiter, Lane
from resnet_service.errors import InvalidRequestError, OverloadedError, ServiceUnavailable
from resnet_service.inference.served_model import ImageReservation, ServedModel
from resnet_service.inference.statistics import ModelStatistics
from resnet_service.server.admission import admit, request_lane, update_admission
from resnet_service.server.model_table import ModelTable
from resnet_service.server.parameters import InferenceParameters
from resnet_service.server.prediction_logging import log_function
from resnet_service.server.rpc.calls import INFERENCE_METHOD, SERVICE, Call, CallRunner
from resnet_service.server.rpc.codec import (
    encode_response,
    measure_request,
    parse_request,
    requested_model,
)
from resnet_service.server.rpc.message_limits import measure_message
from resnet_service.server.rpc.protocol import open_inference_pb2 as messages
from resnet_service.server.rpc.unreserved import Unreserved
from resnet_service.server.state import AppState
from resnet_service.server.uploads import record_wait
from resnet_service.server.v2 import service
from resnet_service.server.v2.model_config import model_config
from resnet_service.server.v2.schemas import TensorMetadata
from resnet_service.server.v2.statistics import select, statistics_response

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

_SCOPE: Final = "predict"
_MAX_WAIT_S: Final = 0.5
"""Time for which a message may wait for its model while the upload memory is scarce."""


class InferenceServicer:
    """The methods of GRPCInferenceService; those for health need no API key.

    server.add_generic_rpc_handlers([InferenceServicer(state, receiving=50).handlers(CallRunner(state))])
    """

    def __init__(self, state: AppState, receiving: int) -> None:
        """Create the methods; at most `receiving` messages with images are received at the same time."""
        self._state = state
        self._receiving = ConcurrencyLimiter(receiving)

    def close(self) -> None:
        """Fail the calls that wait to be received."""
        self._receiving.close(ServiceUnavailable("the service is shutting down"))

    def handlers(self, runner: CallRunner) -> grpc.GenericRpcHandler:
        """Return the handlers of all methods."""
        methods: dict[str, tuple[str | None, Callable[[Call], Awaitable[bytes]]]] = {
            "ServerLive": (None, self._server_live),
            "ServerReady": (None, self._server_ready),
            "ModelReady": (_SCOPE, self._model_ready),
            "ServerMetadata": (_SCOPE, self._server_metadata),
            "ModelMetadata": (_SCOPE, self._model_metadata),
            INFERENCE_METHOD: (_SCOPE, self._model_infer),
            "ModelConfig": (_SCOPE, self._model_config),
            "ModelStatistics": (_SCOPE, self._model_statistics),
            "RepositoryIndex": (_SCOPE, self._repository_index),
            "RepositoryModelLoad": ("admin", self._repository_model_load),
            "RepositoryModelUnload": ("admin", self._repository_model_unload),
        }
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.stream_unary_rpc_method_handler(runner.wrap(name, scope, method))
                for name, (scope, method) in methods.items()
            },
        )

    async def _server_live(self, _: Call) -> bytes:  # the message is empty: it is not read
        is_live = await _succeeds(self._state.backend.check_alive())
        return _encode(messages.ServerLiveResponse(live=is_live))

    async def _server_ready(self, _: Call) -> bytes:
        is_ready = await _succeeds(self._state.backend.check_ready())
        return _encode(messages.ServerReadyResponse(ready=is_ready))

    async def _model_ready(self, call: Call) -> bytes:
        request = await _receive(call, messages.ModelReadyRequest)
        self._find_model(request.name, request.version)
        is_ready = await _succeeds(self._state.backend.check_ready())
        return _encode(messages.ModelReadyResponse(ready=is_ready))

    async def _server_metadata(self, call: Call) -> bytes:
        await _receive(call, messages.ServerMetadataRequest)
        metadata = service.server_metadata()
        response = messages.ServerMetadataResponse(
            name=metadata.name, version=metadata.version, extensions=metadata.extensions
        )
        return _encode(response)

    async def _model_metadata(self, call: Call) -> bytes:
        request = await _receive(call, messages.ModelMetadataRequest)
        served = self._find_model(request.name, request.version)
        versions = self._state.backend.models.versions(served.model.name)
        metadata = service.model_metadata(served, versions)
        response = messages.ModelMetadataResponse(
            name=metadata.name,
            versions=metadata.versions,
            platform=metadata.platform,
            inputs=map(_tensor, metadata.inputs),
            outputs=map(_tensor, metadata.outputs),
        )
        return _encode(response)

    async def _model_infer(self, call: Call) -> bytes:
        state, only = self._state, self._state.backend.models.only
        if only is None:
            return await self._receive_and_infer(call)
        # The message can only be for this version: a place in its queue is reserved before it is read.
        parameters = call.parameters
        async with admit(call.scope, state, parameters, Lane.INTERACTIVE, *only.key) as (served, reservation):
            with state.upload_memory.account(reservation.lane) as account:
                data = await call.receive_images(reservation, account, self._receiving)
                size = measure_request(data)
                name, version = requested_model(data)
                if name != served.key.name or version not in (None, served.key.version):
                    del call.scope["model"]
                    # Raises. Not the current table: a load or unload may have changed it meanwhile.
                    ModelTable({served.key: served}, {}).find(name, version)
                return await self._infer(call, served, reservation, parameters, data, size)

    async def _receive_and_infer(self, call: Call) -> bytes:
        """Receive the message, which names the model, and only then reserve a place in its queue.

        Messages that wait for a busy model may take half of the upload memory: other models need the rest.
        """
        state = self._state
        lane = request_lane(call.scope, InferenceParameters(), Lane.INTERACTIVE)
        with state.upload_memory.account(lane) as account:
            unreserved = Unreserved(lane, state.settings.request_timeout_s)
            data = await call.receive_images(unreserved, account, self._receiving)
            parameters, size = call.parameters, measure_request(data)
            async with AsyncExitStack() as stack:
                admission = admit(call.scope, state, parameters, lane, *requested_model(data))
                limit_s = _MAX_WAIT_S if state.upload_memory.is_scarce else None
                arrived = time.perf_counter()
                try:
                    async with asyncio.timeout(limit_s) as timer:
                        served, reservation = await stack.enter_async_context(admission)
                        await reservation.start()
                except TimeoutError as error:
                    if not timer.expired():
                        raise
                    message = "more than half of the upload memory is in use, and the model is busy"
                    raise OverloadedError(message, "memory", 1.0) from error
                record_wait(call.timing, arrived, time.perf_counter())
                return await self._infer(call, served, reservation, parameters, data, size)

    async def _infer(
        self,
        call: Call,
        served: ServedModel,
        reservation: ImageReservation,
        parameters: InferenceParameters,
        data: bytes,
        size: int,
    ) -> bytes:
        return await service.infer(
            self._state.settings,
            served,
            reservation,
            call.timing,
            partial(parse_request, data),
            encode_response,
            partial(update_admission, call.scope, self._state, reservation, parameters),
            message_bytes=size,
            log=log_function(self._state.prediction_log, call.scope, served.model),
        )

    async def _model_config(self, call: Call) -> bytes:
        request = await _receive(call, messages.ModelConfigRequest)
        served = self._find_model(request.name, request.version)
        versions = self._state.backend.models.versions(served.model.name)
        config = model_config(served, len(versions), self._state.settings)
        return _encode(_parse(messages.ModelConfigResponse(), {"config": config.model_dump()}))

    async def _model_statistics(self, call: Call) -> bytes:
        request = await _receive(call, messages.ModelStatisticsRequest)
        models: Iterable[ModelStatistics] = await self._state.backend.statistics()
        if request.name:
            self._find_model(request.name, request.version)
            models = select(models, request.name, request.version or None)
        return _encode(_parse(messages.ModelStatisticsResponse(), statistics_response(models).model_dump()))

    async def _repository_index(self, call: Call) -> bytes:
        request = await _receive(call, messages.RepositoryIndexRequest)
        _check_repository(request.repository_name)
        statuses = await self._state.backend.model_statuses()
        models = [
            messages.RepositoryIndexResponse.ModelIndex(**status.model_dump())
            for status in statuses
            if status.state == "READY" or not request.ready
        ]
        return _encode(messages.RepositoryIndexResponse(models=models))

    async def _repository_model_load(self, call: Call) -> bytes:
        request = await _receive(call, messages.RepositoryModelLoadRequest)
        _check_repository(request.repository_name)
        if request.parameters:
            raise InvalidRequestError(
                "parameters are not supported; load reads the model of the settings or the repository"
            )
        await self._state.backend.load(request.model_name)
        return _encode(messages.RepositoryModelLoadResponse())

    async def _repository_model_unload(self, call: Call) -> bytes:
        request = await _receive(call, messages.RepositoryModelUnloadRequest)
        _check_repository(request.repository_name)
        unknown = [name for name in request.parameters if name != "unload_dependents"]
        if unknown:
            raise InvalidRequestError(f"unknown parameter {unknown[0][:50]!r}")
        await self._state.backend.unload(request.model_name)
        return _encode(messages.RepositoryModelUnloadResponse())

    def _find_model(self, name: str, version: str) -> ServedModel:
        return self._state.backend.models.find(name, version or None)


async def _receive(call: Call, kind: type[Request]) -> Request:
    """Receive and parse a message without images. Raises InvalidRequestError."""
    data = await call.receive()
    measure_message(data, kind.DESCRIPTOR)
    try:
        request: Request = kind.FromString(data)
    except DecodeError as error:
        raise InvalidRequestError(f"the message is not a {kind.DESCRIPTOR.name}") from error
    return request


def _check_repository(name: str) -> None:
    if name:
        raise InvalidRequestError(f"unknown repository {name[:50]!r}; the server has one, without a name")


def _parse(message: Response, fields: dict[str, Any]) -> Response:
    """Return the message with these fields, which have the names and the values of its JSON."""
    return cast(Response, ParseDict(fields, message))


def _encode(response: Message) -> bytes:
    data: bytes = response.SerializeToString()
    return data


async def _succeeds(check: Awaitable[None]) -> bool:
    """Return whether a check of the backend passes: these messages have a field for it."""
    try:
        await check
    except ServiceUnavailable:
        return False
    return True


def _tensor(metadata: TensorMetadata) -> messages.ModelMetadataResponse.TensorMetadata:
    return messages.ModelMetadataResponse.TensorMetadata(
        name=metadata.name, datatype=metadata.datatype, shape=metadata.shape
    )
