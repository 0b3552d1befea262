"""The gRPC server of one process: its port, its limits, and its drain."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import grpc.aio
import structlog

from resnet_service.errors import AddressUnavailableError
from resnet_service.server.rpc import MAX_CONNECTIONS
from resnet_service.server.rpc.calls import CallRunner
from resnet_service.server.rpc.health import HealthServicer, ReflectionServicer
from resnet_service.server.rpc.servicer import InferenceServicer
from resnet_service.server.state import AppState

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

_MAX_CALLS_PER_CONNECTION: Final = 1_000
"""Further ones wait in the client."""
_MAX_IDLE_S: Final = 300
"""Idle connections are closed then, so that they do not keep others out; clients connect again."""
_REJECTION_S: Final = 0.5
"""To send the responses to calls that are rejected at the end of the drain."""


class GRPCServer:
    """Serves the protocol on addresses that a socket of the service has reserved, from `start` to `stop`."""

    def __init__(self, state: AppState, addresses: Sequence[str], *, processes: int = 1) -> None:
        """Create a server that is not started; `processes` is how many of them share the addresses."""
        self._state = state
        self._addresses = addresses
        # Messages are not counted as upload memory while they are received, only their number is limited.
        self._receiving = max(2, state.upload_memory.limit // state.settings.max_body_bytes // processes)

    async def start(self) -> None:
        """Accept connections, on the running event loop. Raises AddressUnavailableError."""
        state, settings = self._state, self._state.settings
        self._server = grpc.aio.server(
            options=self._options(), maximum_concurrent_rpcs=settings.max_connections
        )
        self._runner = CallRunner(state)
        self._servicer = InferenceServicer(state, self._receiving)
        self._health, self._reflection = HealthServicer(state.backend), ReflectionServicer()
        handlers = [self._servicer.handlers(self._runner), self._health.handlers()]
        if settings.api_docs:
            handlers.append(self._reflection.handlers())
        self._server.add_generic_rpc_handlers(handlers)
        for address in self._addresses:
            try:
                self._server.add_insecure_port(address)
            except RuntimeError as error:
                raise AddressUnavailableError(f"cannot listen on {address}: {error}") from error
        await self._server.start()
        self._health.start()

    def begin_drain(self) -> None:
        """Report NOT_SERVING from now on; calls are still accepted."""
        self._health.begin_drain()
        self._reflection.begin_drain()

    async def stop(self, timeout_s: float) -> None:
        """Accept no more calls, finish the others within `timeout_s` seconds, and close all connections.

        Calls whose message has not been received shortly before that end with UNAVAILABLE.
        """
        loop = asyncio.get_running_loop()
        timer = loop.call_later(max(0.0, timeout_s - _REJECTION_S), self._servicer.close)
        await self._server.stop(timeout_s)
        timer.cancel()
        if self._runner.active:
            _log.warning("grpc_calls_cancelled", calls=self._runner.active)

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
