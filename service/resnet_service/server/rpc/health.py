"""The standard services for health and reflection, which need no API key, with limits against their clients.

grpcio's own health servicer keeps a lock while it sends to a stream of `Watch`: one client that does not read
would block all checks and the drain.
"""

import asyncio
from typing import Any, Final

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_reflection.v1alpha import reflection, reflection_pb2

from resnet_service.errors import ServiceUnavailable
from resnet_service.server.backend import Backend
from resnet_service.server.rpc.calls import SERVICE, Context
from resnet_service.server.rpc.protocol import open_inference_pb2

_INTERVAL_S: Final = 1.0
"""Between two checks for streams of `Watch`."""
_MAX_STREAMS: Final = 100
"""Of `Watch`: clients have one for each connection."""
_MAX_READS: Final = 8
"""Messages without a key that are received at the same time: each can have the maximum size."""
_READ_TIMEOUT_S: Final = 2.0
_REFLECTION_TIMEOUT_S: Final = 30.0

Response = health_pb2.HealthCheckResponse


class HealthServicer:
    """Reports readiness, as /readyz does, until `begin_drain`; streams of `Watch` end then.

    servicer = HealthServicer(backend)
    servicer.start()
    server.add_generic_rpc_handlers([servicer.handlers()])
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._status: int = Response.NOT_SERVING
        self._changed = asyncio.Event()
        self._streams = 0
        self._is_draining = False
        self._reads = asyncio.Semaphore(_MAX_READS)

    def start(self) -> None:
        """Follow the readiness, for streams of `Watch`."""
        self._task = asyncio.create_task(self._follow())

    def begin_drain(self) -> None:
        """Report NOT_SERVING from now on, and end all streams."""
        self._task.cancel()
        self._set(Response.NOT_SERVING)
        self._is_draining = True
        self._changed.set()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the handlers of both methods; they read their messages themselves, a few at a time."""
        return grpc.method_handlers_generic_handler(
            HEALTH_SERVICE,
            {
                "Check": grpc.stream_unary_rpc_method_handler(self._check),
                "Watch": grpc.stream_stream_rpc_method_handler(self._watch),
            },
        )

    async def _check(self, _: Any, context: Context) -> bytes:
        name = await self._read_name(context)
        await self._refresh()
        if name not in ("", SERVICE):
            await context.abort(StatusCode.NOT_FOUND, "unknown service")
        return _encode(self._status)

    async def _watch(self, _: Any, context: Context) -> None:
        name = await self._read_name(context)
        if self._streams >= _MAX_STREAMS:
            await context.abort(StatusCode.RESOURCE_EXHAUSTED, "too many streams of Watch")
        self._streams += 1
        try:
            await self._refresh()
            while True:
                changed, is_last = self._changed, self._is_draining
                status = self._status if name in ("", SERVICE) else Response.SERVICE_UNKNOWN
                await context.write(_encode(status))
                if is_last:
                    return
                await changed.wait()
        finally:
            self._streams -= 1

    async def _read_name(self, context: Context) -> str:
        """Return the name of the service in the message of a call."""
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S), self._reads:
                data = await context.read()
            name: str = health_pb2.HealthCheckRequest.FromString(
                data if isinstance(data, bytes) else b""
            ).service
        except TimeoutError:
            await context.abort(StatusCode.DEADLINE_EXCEEDED, "the message was not received in time")
        except DecodeError:
            await context.abort(StatusCode.INVALID_ARGUMENT, "the message is damaged")
        return name

    async def _follow(self) -> None:
        while True:
            await self._refresh()
            await asyncio.sleep(_INTERVAL_S)

    async def _refresh(self) -> None:
        try:
            await self._backend.check_ready()
        except ServiceUnavailable:
            self._set(Response.NOT_SERVING)
        else:
            self._set(Response.SERVING)

    def _set(self, status: int) -> None:
        if self._is_draining or status == self._status:
            return
        self._status = status
        self._changed.set()
        self._changed = asyncio.Event()


class ReflectionServicer:
    """Lets clients such as grpcurl read the definition of all services, in short streams."""

    def __init__(self) -> None:
        pool = DescriptorPool()
        names = []
        for module in (open_inference_pb2, health_pb2, reflection_pb2):
            file = pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
            names += [service.full_name for service in file.services_by_name.values()]
        self._servicer = reflection.aio.ReflectionServicer(names, pool=pool)
        self._streams: set[asyncio.Task[None]] = set()

    def begin_drain(self) -> None:
        """End all streams."""
        for stream in self._streams:
            stream.cancel()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the handler of the only method."""
        method = grpc.stream_stream_rpc_method_handler(
            self._respond,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, {"ServerReflectionInfo": method})

    async def _respond(self, requests: Any, context: Context) -> None:
        if len(self._streams) >= _MAX_READS:
            await context.abort(StatusCode.RESOURCE_EXHAUSTED, "too many streams of reflection")
        stream = asyncio.current_task()
        assert stream is not None
        self._streams.add(stream)
        try:
            async with asyncio.timeout(_REFLECTION_TIMEOUT_S):
                async for response in self._servicer.ServerReflectionInfo(requests, context):
                    await context.write(response)
        except TimeoutError:
            await context.abort(StatusCode.DEADLINE_EXCEEDED, "the stream was open for too long")
        finally:
            self._streams.discard(stream)


def _encode(status: int) -> bytes:
    data: bytes = Response(status=status).SerializeToString()
    return data
