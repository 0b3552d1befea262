"""Uvicorn's server, extended to drain before it stops and to stop if the engine fails or hangs."""

import asyncio
import socket
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import TYPE_CHECKING, Final

import structlog
import uvicorn

from resnet_service.errors import AddressUnavailableError
from resnet_service.server.listener import allow_rebinding
from resnet_service.server.local_backend import LocalBackend
from resnet_service.server.management_server import ManagementServer
from resnet_service.server.process_monitor import ProcessMonitor, exit_immediately
from resnet_service.server.state import AppState

if TYPE_CHECKING:  # it needs an extra
    from resnet_service.server.rpc.server import GRPCServer

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

DRAIN_GRACE_S: Final = 0.5
"""Time after SIGTERM in which open connections still accept requests, which may already be on their way."""
_REJECTION_MARGIN_S: Final = 0.5
"""Time before the end of the drain timeout at which the remaining requests get a 503."""


class InferenceServer(uvicorn.Server):
    """Serves one application until a signal arrives, or until the engine fails or hangs.

    On SIGTERM it stops listening and becomes unready. Each open connection may finish the request that it
    is in or is about to send; only then are idle connections closed. After the drain timeout, the remaining
    requests get a 503.
    """

    def __init__(
        self,
        state: AppState,
        config: uvicorn.Config,
        *,
        management: ManagementServer | None = None,
        grpc: "GRPCServer | None" = None,
        watchdog: bool = False,
        on_listening: Callable[[], None] | None = None,
    ) -> None:
        """Start and supervise `management`; it still runs when this server has shut down.

        `grpc` is started after this server, and drains together with it.
        With `watchdog`, the process exits if the event loop does not run for the stall timeout.
        `on_listening` is called once connections are accepted; by default, the addresses are logged.
        """
        super().__init__(config)
        self._state = state
        self._management = management
        self._grpc = grpc
        self._on_listening = on_listening or self._log_addresses
        self.monitor = ProcessMonitor(
            state.backend, state.settings.stall_timeout_s, management=management, watchdog=watchdog
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Override to call `on_listening`, and to start the management port and that of gRPC."""
        allow_rebinding(sockets or ())
        if self._management is not None:
            self._management.start()
        await super().startup(sockets)
        if self.servers:  # otherwise the start has failed
            if self._grpc is not None:
                await self._start_grpc(self._grpc)
            self._on_listening()

    async def _start_grpc(self, grpc: "GRPCServer") -> None:
        try:
            await grpc.start()
        except AddressUnavailableError as error:
            _log.critical("grpc_port_failed", reason=str(error))
            sys.exit(1)  # as uvicorn does

    def _log_addresses(self) -> None:
        sockets = [listener for server in self.servers for listener in server.sockets]
        log_addresses(self._state, sockets, self._management)

    async def on_tick(self, counter: int) -> bool:
        """Override to stop the server if the monitor finds a reason, and to refresh the gauges."""
        self._state.metrics.refresh()
        return self.monitor.tick() or await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Override to exit at the second signal; uvicorn does it for SIGINT only, and waits for threads."""
        if self.should_exit:
            _log.warning("forced_shutdown", signal=sig)
            exit_immediately()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Override because uvicorn closes idle connections at once, while a request may be on its way."""
        self.monitor.begin_shutdown(self._state.settings.drain_timeout_s)
        self._state.begin_drain()
        _log.info("draining", connections=len(self.server_state.connections))
        for server in self.servers:
            server.close()
        if self._grpc is not None:
            self._grpc.begin_drain()
        # All further responses tell the client to open its next connection, which another replica accepts.
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        await asyncio.sleep(DRAIN_GRACE_S)
        rejection = asyncio.create_task(self._reject_remaining_requests())
        if self._grpc is not None:
            # Uvicorn waits for these tasks, as for connections, before it ends the application.
            task = asyncio.create_task(self._grpc.stop(self.config.timeout_graceful_shutdown or 0))
            self.server_state.tasks.add(task)
            task.add_done_callback(self.server_state.tasks.discard)
        await super().shutdown(sockets)
        rejection.cancel()

    async def _reject_remaining_requests(self) -> None:
        """Close the engines, so that requests get a 503, before uvicorn cancels them without a response."""
        await asyncio.sleep((self.config.timeout_graceful_shutdown or 0) - _REJECTION_MARGIN_S)
        await self._state.backend.close(timeout_s=0)


def log_addresses(
    state: AppState, sockets: Iterable[socket.socket], management: ManagementServer | None
) -> None:
    """Log where the service listens, because the operating system may have chosen the port."""
    served, workers = state.backend.models.find(), {}
    if isinstance(state.backend, LocalBackend) and state.backend.workers:
        workers = {"workers": state.backend.workers}
    for listener in sockets:
        host, port = listener.getsockname()[:2]
        url_host = f"[{host}]" if ":" in host else host
        _log.info(
            "serving",
            url=f"http://{url_host}:{port}",
            model=served.model.name,
            device=served.placement.devices,
            precision=served.placement.precision,
            runtime=served.placement.runtime,
            streams_per_device=served.placement.streams,
            management_port=state.settings.management_port if management else None,
            grpc_port=state.settings.grpc_port or None,
            **workers,
        )
