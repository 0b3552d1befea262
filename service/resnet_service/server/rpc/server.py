"""The gRPC server of one process: its port, its limits, health and reflection, and its drain."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import grpc.aio
import structlog
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from resnet_service.errors import AddressUnavailableError, ServiceUnavailable
from resnet_service.server.backend import Backend
from resnet_service.server.rpc.calls import SERVICE, CallRunner
from resnet_service.server.rpc.protocol import open_inference_pb2
from resnet_service.server.rpc.servicer import InferenceServicer
from resnet_service.server.state import AppState

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

MAX_CONNECTIONS: Final = 1_000
"""Each carries many calls at a time."""
_MAX_CALLS_PER_CONNECTION: Final = 1_000
"""Further ones wait in the client."""
_MAX_IDLE_S: Final = 300
"""Idle connections are closed then, so that they do not keep others out; clients connect again."""
_HEALTH_INTERVAL_S: Final = 1.0
_FLUSH_S: Final = 0.2
"""To send the last responses; streams of health and reflection are cancelled then."""


class GRPCServer:
    """Serves the protocol on addresses that a socket of the service has reserved, from `start` to `stop`."""

    def __init__(self, state: AppState, addresses: Sequence[str], *, processes: int = 1) -> None:
        """Create a server that is not started; `processes` is how many of them share the addresses."""
        self._state = state
        self._addresses = addresses
        # Messages are not counted as upload memory while they are received, only their number is limited.
        self._receiving = max(1, state.upload_memory.limit // state.settings.max_body_bytes // processes)

    async def start(self) -> None:
        """Accept connections, on the running event loop. Raises AddressUnavailableError."""
        state, settings = self._state, self._state.settings
        self._server = grpc.aio.server(
            options=self._options(), maximum_concurrent_rpcs=settings.max_connections
        )
        self._runner = CallRunner(state)
        servicer = InferenceServicer(state, self._receiving)
        self._server.add_generic_rpc_handlers((servicer.handlers(self._runner),))
        self._health = _HealthServicer(state.backend)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if settings.api_docs:
            _add_reflection(self._server)
        for address in self._addresses:
            try:
                self._server.add_insecure_port(address)
            except RuntimeError as error:
                raise AddressUnavailableError(f"cannot listen on {address}: {error}") from error
        await self._health.refresh()
        await self._server.start()
        self._health_task = asyncio.create_task(self._health.follow(_HEALTH_INTERVAL_S))

    async def begin_drain(self) -> None:
        """Report NOT_SERVING from now on; calls are still accepted."""
        self._health_task.cancel()
        await self._health.enter_graceful_shutdown()

    async def stop(self, timeout_s: float) -> None:
        """Accept no more calls, finish the others within `timeout_s` seconds, and close all connections."""
        closing = asyncio.create_task(self._server.stop(timeout_s))
        try:
            async with asyncio.timeout(timeout_s):
                await self._runner.wait_until_idle()
        except TimeoutError:
            _log.warning("grpc_calls_cancelled")
        await self._server.stop(_FLUSH_S)
        await closing

    def _options(self) -> list[tuple[str, Any]]:
        settings = self._state.settings
        return [
            ("grpc.so_reuseport", 1),  # with the socket that reserves the address, and with other processes
            ("grpc.max_receive_message_length", settings.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_allowed_incoming_connections", min(MAX_CONNECTIONS, settings.max_connections)),
            ("grpc.max_concurrent_streams", _MAX_CALLS_PER_CONNECTION),
            ("grpc.max_connection_idle_ms", _MAX_IDLE_S * 1000),
            ("grpc.server_handshake_timeout_ms", int(settings.header_timeout_s * 1000)),
            (
                "grpc.compression_enabled_algorithms_bitset",
                1,
            ),  # none: a small message could become a large one
            ("grpc.http2.bdp_probe", 0),  # it would raise the 64 KiB that are received of a call that waits
        ]


class _HealthServicer(health.aio.HealthServicer):  # type: ignore[misc]  # it has no types
    """The standard health service; it reports readiness, as /readyz does."""

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self._backend = backend

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Override to report the readiness of now."""
        await self.refresh()
        return await super().Check(request, context)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Override to begin with the readiness of now."""
        await self.refresh()
        await super().Watch(request, context)

    async def refresh(self) -> None:
        """Set the status of the server and of its service."""
        try:
            await self._backend.check_ready()
        except ServiceUnavailable:
            status = health_pb2.HealthCheckResponse.NOT_SERVING
        else:
            status = health_pb2.HealthCheckResponse.SERVING
        for name in ("", SERVICE):
            await self.set(name, status)

    async def follow(self, interval_s: float) -> None:
        """Refresh the status for streams of `Watch`, until the task is cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            await self.refresh()


def _add_reflection(server: grpc.aio.Server) -> None:
    """Let clients such as grpcurl read the definition of all services."""
    pool = DescriptorPool()
    names = []
    for module in (open_inference_pb2, health_pb2, reflection_pb2):
        file = pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
        names += [service.full_name for service in file.services_by_name.values()]
    servicer = reflection.aio.ReflectionServicer(names, pool=pool)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
