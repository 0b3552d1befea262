"""The main process in front of HTTP workers: it supervises them, and runs the devices for them."""

import asyncio
import socket
from collections.abc import Sequence
from types import FrameType
from typing import Final

import structlog

from resnet_service.server.listener import share_addresses
from resnet_service.server.local_backend import LocalBackend
from resnet_service.server.management_server import ManagementServer
from resnet_service.server.process_monitor import TICKS_PER_SECOND, ProcessMonitor, exit_immediately
from resnet_service.server.state import AppState
from resnet_service.server.uvicorn_server import log_addresses
from resnet_service.server.workers.supervisor import Supervisor

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)


class MainProcess:
    """Serves with HTTP workers until `should_exit` is set, or until the engine fails or hangs.

    Then the workers finish their requests, within the drain timeout, before the engine is closed.
    """

    def __init__(
        self,
        state: AppState,
        listeners: Sequence[Sequence[socket.socket]],
        *,
        management: ManagementServer | None = None,
        grpc_sockets: Sequence[socket.socket] = (),
        watchdog: bool = False,
    ) -> None:
        """Create the process; `listeners` are the bound sockets of each worker. See `InferenceServer`.

        `grpc_sockets` reserve the addresses on which each worker has a gRPC server.
        """
        self.should_exit = False
        self.monitor = ProcessMonitor(
            state.backend, state.settings.stall_timeout_s, management=management, watchdog=watchdog
        )
        assert isinstance(state.backend, LocalBackend)
        self._backend = state.backend
        self._state = state
        self._listeners = listeners
        self._management = management
        self._grpc_sockets = grpc_sockets
        self.has_failed = False

    def handle_exit(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Handle a signal: drain, or exit at the second one."""
        if self.should_exit:
            _log.warning("forced_shutdown", signal=number)
            exit_immediately()
        self.should_exit = True

    async def serve(self) -> None:
        """Serve until the end of the process."""
        state = self._state
        grpc_addresses = share_addresses(self._grpc_sockets)
        supervisor = Supervisor(state.settings, self._backend, state.metrics, self._listeners, grpc_addresses)
        if self._management is not None:
            self._management.start()
        try:
            await self._until_exit(supervisor)
            self.monitor.begin_shutdown(state.settings.drain_timeout_s)
            state.begin_drain()
            _log.info("draining", workers=len(self._listeners))
            for listener in {
                listener for group in (*self._listeners, self._grpc_sockets) for listener in group
            }:
                listener.close()
            await supervisor.drain()
            await state.close()
        finally:
            supervisor.stop()

    async def _until_exit(self, supervisor: Supervisor) -> None:
        starting = asyncio.create_task(self._start(supervisor))
        while not (self.should_exit or self.monitor.tick()):
            supervisor.tick()
            error = starting.exception() if starting.done() else None
            if supervisor.failed or error is not None:
                _log.critical("workers_failed", exc_info=error)
                self.has_failed = True
                break
            await asyncio.sleep(1 / TICKS_PER_SECOND)
        starting.cancel()

    async def _start(self, supervisor: Supervisor) -> None:
        await supervisor.start()
        if not supervisor.failed:
            log_addresses(self._state, self._listeners[0], self._management)
            self._backend.start()
