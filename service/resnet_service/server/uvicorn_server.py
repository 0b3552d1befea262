"""Uvicorn's server, extended to drain before it stops and to stop if the engine fails or hangs."""

import asyncio
import faulthandler
import logging
import os
import socket
from types import FrameType
from typing import Final, NoReturn

import structlog
import uvicorn

from resnet_service.errors import ServiceError
from resnet_service.server.listener import allow_rebinding
from resnet_service.server.management_server import ManagementServer
from resnet_service.server.state import AppState

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

DRAIN_GRACE_S: Final = 0.5
"""Time after SIGTERM in which open connections still accept requests, which may already be on their way."""
_REJECTION_MARGIN_S: Final = 0.5
"""Time before the end of the drain timeout at which the remaining requests get a 503."""
_TICKS_PER_SECOND: Final = 10
"""How often uvicorn calls `on_tick`."""


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
        watchdog: bool = False,
    ) -> None:
        """Start and supervise `management`; it still runs when this server has shut down.

        With `watchdog`, the process exits if the event loop does not run for the stall timeout.
        """
        super().__init__(config)
        self._management = management
        self.reload_requested = False  # set by the handler of SIGHUP, read by `on_tick`
        self._state = state
        self._watchdog_s = state.settings.stall_timeout_s + 1 if watchdog else None
        self._reload_task: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Override to log the addresses, because the port may have been chosen by the operating system."""
        allow_rebinding(sockets or ())
        if self._management is not None:
            self._management.start()
        await super().startup(sockets)
        engine = self._state.engine
        runtime = engine.runtimes[0]
        for server in self.servers:
            for listener in server.sockets:
                host, port = listener.getsockname()[:2]
                url_host = f"[{host}]" if ":" in host else host
                _log.info(
                    "serving",
                    url=f"http://{url_host}:{port}",
                    model=engine.model.name,
                    device=engine.devices,
                    precision=runtime.precision,
                    runtime=runtime.name,
                    streams_per_device=len(engine.runtimes),
                    management_port=self._state.settings.management_port if self._management else None,
                )

    async def on_tick(self, counter: int) -> bool:
        """Override to stop the server if the engine has failed or hangs, and to start a requested reload."""
        if self._watchdog_s is not None and counter % _TICKS_PER_SECOND == 0:
            # A C thread that does not need the GIL; it prints the stacks of all threads and exits.
            faulthandler.dump_traceback_later(self._watchdog_s, exit=True)
        self._state.heartbeat.beat()
        if self._management is not None and self._management.has_ended:
            _log.critical("management_port_failed")
            return True
        engine = self._state.engine
        if engine.fatal_error is not None:
            _log.critical("engine_failed", exc_info=engine.fatal_error)
            return True
        if engine.is_hung:
            _log.critical("engine_stuck", stall_timeout_s=self._state.settings.stall_timeout_s)
            return True
        if self.reload_requested and not self._state.engines.is_reloading:
            self.reload_requested = False
            self._reload_task = asyncio.create_task(self._reload())
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Override to exit at the second signal; uvicorn does it for SIGINT only, and waits for threads."""
        if self.should_exit:
            _log.warning("forced_shutdown", signal=sig)
            exit_immediately()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Override because uvicorn closes idle connections at once, while a request may be on its way."""
        if self._watchdog_s is not None:
            drain_s = self._state.settings.drain_timeout_s
            faulthandler.dump_traceback_later(drain_s + self._watchdog_s, exit=True)
        self._state.heartbeat.stop()
        if self._reload_task is not None:
            self._reload_task.cancel()
        _log.info("draining", connections=len(self.server_state.connections))
        self._state.engines.begin_drain()
        for server in self.servers:
            server.close()
        # All further responses tell the client to open its next connection, which another replica accepts.
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        await asyncio.sleep(DRAIN_GRACE_S)
        rejection = asyncio.create_task(self._reject_remaining_requests())
        await super().shutdown(sockets)
        rejection.cancel()

    async def _reload(self) -> None:
        try:
            await self._state.reload()
        except ServiceError as error:
            _log.error("reload_failed", reason=str(error), exc_info=error)
        else:
            _log.info("reloaded", model=self._state.engine.model.name)

    async def _reject_remaining_requests(self) -> None:
        """Close the engines, so that requests get a 503, before uvicorn cancels them without a response."""
        await asyncio.sleep((self.config.timeout_graceful_shutdown or 0) - _REJECTION_MARGIN_S)
        await self._state.engines.close(timeout_s=0)


def exit_immediately() -> NoReturn:
    """Exit with status 1 without waiting for threads, one of which may never end."""
    logging.shutdown()
    os._exit(1)
