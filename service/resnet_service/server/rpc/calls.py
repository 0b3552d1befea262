"""Run calls: API key, request id, time limits, the status of errors, metrics, spans and access log.

For gRPC, this is what the middleware, `server.auth`, `server.uploads` and the exception handlers are for
HTTP.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import unquote

import grpc.aio
import structlog
from grpc import StatusCode

from resnet_service.batching import ConcurrencyLimiter
from resnet_service.errors import DeadlineExceededError, InvalidRequestError, RequestTimeout, ServiceError
from resnet_service.inference.request_timing import RequestTiming
from resnet_service.inference.served_model import ReceivingRequest
from resnet_service.server.exception_handlers import error_kind, status_of
from resnet_service.server.model_metrics import CLIENT_CLOSED
from resnet_service.server.parameters import InferenceParameters
from resnet_service.server.request_recorder import RequestRecord, RequestRecorder
from resnet_service.server.rpc.status import INTERNAL_ERROR, Metadata, code_of, retry_metadata
from resnet_service.server.state import AppState
from resnet_service.server.uploads import UploadAccount, receive_upload

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

SERVICE: Final = "inference.GRPCInferenceService"
INFERENCE_METHOD: Final = "ModelInfer"
_PROBES: Final = frozenset({"ServerLive", "ServerReady"})
_MAX_RECEIVE_S: Final = 5.0
"""Time to receive a message with images while other calls wait for that."""
_MAX_SMALL_READS: Final = 8
"""Messages without images that are received at the same time: each can have the maximum size."""
_DEADLINE_TOLERANCE_S: Final = 0.05
"""The client's library may cancel a call a moment before its deadline passes here."""

Context = grpc.aio.ServicerContext[Any, Any]


class Call:
    """One call of a client, from its metadata to its status.

    headers: the metadata that is text; of a name that occurs twice, the first value. timing: the record of
    its stages. scope: what is known of the client: "request_id", "api_key_name", "is_bulk_only",
    "is_unlogged", "model" and "priority", as in the scope of ASGI.
    """

    def __init__(self, context: Context, state: AppState, small_reads: asyncio.Semaphore) -> None:
        self.headers: dict[str, str] = {}
        for name, value in context.invocation_metadata() or ():
            if isinstance(value, str):
                self.headers.setdefault(name, value)
        self.timing = RequestTiming()
        self.scope: dict[str, Any] = {}
        self.bytes_in = 0
        self._small_reads = small_reads
        self._context = context
        self._settings = state.settings

    @property
    def remaining_s(self) -> float:
        """The seconds until the client's deadline; infinite without one."""
        remaining = self._context.time_remaining()
        return float("inf") if remaining is None else remaining

    @property
    def parameters(self) -> InferenceParameters:
        """The parameters that are not in the message: the client's deadline is the timeout of a request."""
        if self.remaining_s > self._settings.request_timeout_s:
            return InferenceParameters()
        return InferenceParameters(timeout_ms=max(1, int(self.remaining_s * 1e3)))

    async def receive(self) -> bytes:
        """Return the message of a call without images. Raises InvalidRequestError and RequestTimeout."""
        timeout_s = self._settings.read_timeout_s
        try:
            async with asyncio.timeout(timeout_s), self._small_reads:
                return await self._read()
        except TimeoutError as error:
            raise RequestTimeout(f"the message was not received within {timeout_s:g} s") from error

    async def receive_images(
        self, reservation: ReceivingRequest, account: UploadAccount, receiving: ConcurrencyLimiter
    ) -> bytes:
        """Return the message, read once the limits on concurrent requests and on `receiving` allow it.

        Until then, it stays with the client, except for the first 64 KiB. Raises InvalidRequestError if the
        call has no message, OverloadedError if the upload memory is full, RequestTimeout if others wait and
        the client is slow, and what `ConcurrencyLimiter.acquire` and `receive_upload` raise.
        """

        async def read() -> bytes:
            reading = asyncio.ensure_future(self._read())
            try:
                while not (await asyncio.wait({reading}, timeout=_MAX_RECEIVE_S))[0]:
                    if receiving.waiting:
                        raise RequestTimeout(
                            f"the message was not received within {_MAX_RECEIVE_S:g} s, and others wait"
                        )
                data = reading.result()
            except asyncio.CancelledError:
                # gRPC cancels a call with a message over the limit, right after the read has ended.
                if reading.done() and (error := reading.exception()) is not None:
                    raise error from None
                raise
            finally:
                reading.cancel()
            account.acquire(len(data))
            return data

        arrived, lane = time.perf_counter(), reservation.lane
        await reservation.start()  # first: requests that wait for it must not hold what others need
        await receiving.acquire(reservation.deadline, lane)
        try:
            return await receive_upload(
                read,
                reservation,
                self.timing,
                self._settings.read_timeout_s,
                arrived=arrived,
                max_extension_s=max(0.0, self.remaining_s - self._settings.request_timeout_s),
            )
        finally:
            receiving.release(lane)

    async def _read(self) -> bytes:
        data = await self._context.read()
        if not isinstance(data, bytes):  # gRPC has already ended a call with a message over the limit
            if self.remaining_s <= _DEADLINE_TOLERANCE_S:
                raise DeadlineExceededError("deadline exceeded before the message was received")
            limit = self._settings.max_body_bytes
            raise InvalidRequestError(f"the call has no message, or one larger than {limit:,} bytes")
        self.bytes_in = len(data)
        return data


class CallRunner:
    """Runs the calls of one server; `active` is the number of those in progress.

    handler = runner.wrap("ModelInfer", "predict", servicer.model_infer)
    """

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._recorder = RequestRecorder(
            state.metrics, state.backend.request_counters, state.tracer, state.settings
        )
        self._small_reads = asyncio.Semaphore(_MAX_SMALL_READS)
        self.active = 0
        """The number of calls in progress."""

    def wrap(
        self, name: str, scope: str | None, method: Callable[[Call], Awaitable[bytes]]
    ) -> Callable[[Any, Context], Awaitable[bytes]]:
        """Return a handler for gRPC, which calls `method` if the API key has `scope`; None needs no key."""

        async def handle(_: Any, context: Context) -> bytes:
            self.active += 1
            try:
                return await self._run(name, scope, method, context)
            finally:
                self.active -= 1

        return handle

    async def _run(
        self, name: str, scope: str | None, method: Callable[[Call], Awaitable[bytes]], context: Context
    ) -> bytes:
        call = Call(context, self._state, self._small_reads)
        ids = self._recorder.ids(call.headers)
        call.scope["request_id"] = ids["request_id"]
        trailing: Metadata = (("x-request-id", ids["request_id"]),)
        started_at_ns = time.time_ns()
        code, http_status, message, response, kind = StatusCode.OK, 200, "", b"", None
        with structlog.contextvars.bound_contextvars(**ids):
            try:
                if scope is not None:
                    await self._authorize(scope, call)
                response = await method(call)
            except ServiceError as error:
                call.timing.fail(error)
                code, http_status, message = code_of(error), status_of(type(error)), str(error)
                trailing, kind = trailing + retry_metadata(error), error_kind(error)
            except asyncio.CancelledError:  # by the client, by its deadline, or at the end of the drain
                code, http_status = _cancelled(call)
                raise
            except Exception as error:  # noqa: BLE001
                # A defect must not be taken for a fault of the client; gRPC itself would respond with
                # UNKNOWN.
                _log.error("grpc_call_failed", method=name, exc_info=error)
                call.timing.fail(error)
                code, http_status, message = StatusCode.INTERNAL, 500, INTERNAL_ERROR
            finally:
                self._record(name, call, code, http_status, ids, started_at_ns, len(response), context, kind)
        if call.timing.has_stages:
            trailing += (("server-timing", call.timing.server_timing()),)
        if code is not StatusCode.OK:
            await context.abort(code, message, trailing)
        context.set_trailing_metadata(trailing)
        return response

    async def _authorize(self, scope: str, call: Call) -> None:
        backend = self._state.backend
        key = backend.api_keys.check(scope, call.headers)
        if key is not None:
            key.describe(call.scope)
            if key.rate is not None:
                await backend.count_request(key)

    def _record(
        self,
        name: str,
        call: Call,
        code: StatusCode,
        http_status: int,
        ids: dict[str, str],
        started_at_ns: int,
        bytes_out: int,
        context: Context,
        kind: str | None,
    ) -> None:
        seconds, trace = call.timing.total_s, ids.get("trace_id")
        duration = self._state.metrics.grpc_request_seconds.labels(name, code.name)
        duration.observe(seconds, None if trace is None else {"trace_id": trace})
        record = RequestRecord(
            method=name,
            route=SERVICE,
            path=f"/{SERVICE}/{name}",
            status=code.name,
            http_status=http_status,
            is_inference=name == INFERENCE_METHOD,
            timing=call.timing,
            seconds=seconds,
            started_at_ns=started_at_ns,
            bytes_in=call.bytes_in,
            bytes_out=bytes_out,
            headers=call.headers,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": SERVICE,
                "rpc.method": name,
                "rpc.grpc.status_code": code.value[0],
                "request.id": ids["request_id"],
            },
            client=_client_address(context.peer()),
            key=call.scope.get("api_key_name"),
            model=call.scope.get("model"),
            priority=call.scope.get("priority"),
            error=kind,
        )
        is_logged = self._state.settings.access_log_probes or name not in _PROBES
        self._recorder.record(record, is_logged=is_logged)


def _cancelled(call: Call) -> tuple[StatusCode, int]:
    """Return the code of a cancelled call, and the status of HTTP: gRPC enforces the deadline as well."""
    if call.remaining_s > _DEADLINE_TOLERANCE_S:
        return StatusCode.CANCELLED, CLIENT_CLOSED
    for image in call.timing.images:
        if not image.has_result:
            image.fail(DeadlineExceededError())
    return StatusCode.DEADLINE_EXCEEDED, status_of(DeadlineExceededError)


def _client_address(peer: str) -> str | None:
    """Return the address in gRPC's name for a client, such as ipv4:127.0.0.1:4711 or ipv6:%5B::1%5D:4711."""
    kind, _, address = peer.partition(":")
    return unquote(address).rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else None
