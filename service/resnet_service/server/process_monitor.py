"""What a process checks ten times a second: whether it has to stop, and whether a reload was requested."""

import asyncio
import faulthandler
from typing import Final

import structlog

from resnet_service.errors import ServiceError
from resnet_service.server.backend import Backend
from resnet_service.server.management_server import ManagementServer

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

TICKS_PER_SECOND: Final = 10
"""How often `tick` has to be called, by the event loop of the process."""


class ProcessMonitor:
    """Supervises the event loop, the backend and the management port of one process.

    monitor = ProcessMonitor(backend, stall_timeout_s=60)
    while not monitor.tick():
        await asyncio.sleep(1 / TICKS_PER_SECOND)
    monitor.begin_shutdown(drain_timeout_s=25)
    """

    def __init__(
        self,
        backend: Backend,
        stall_timeout_s: float,
        *,
        management: ManagementServer | None = None,
        watchdog: bool = False,
    ) -> None:
        """Create a monitor; with `watchdog`, the process exits if `tick` is not called for the timeout."""
        self.reload_requested = False  # set by the handler of SIGHUP
        self._backend = backend
        self._stall_timeout_s = stall_timeout_s
        self._management = management
        self._watchdog_s = stall_timeout_s + 1 if watchdog else None
        self._ticks = 0
        self._reload_task: asyncio.Task[None] | None = None

    def tick(self) -> bool:
        """Return whether the process has to stop; the reason is in the log. Starts a requested reload."""
        if self._watchdog_s is not None and self._ticks % TICKS_PER_SECOND == 0:
            # A C thread that does not need the GIL; it prints the stacks of all threads and exits.
            faulthandler.dump_traceback_later(self._watchdog_s, exit=True)
        self._ticks += 1
        self._backend.heartbeat.beat()
        if self._management is not None and self._management.has_ended:
            _log.critical("management_port_failed")
            return True
        if self._backend.fatal_error is not None:
            _log.critical("engine_failed", exc_info=self._backend.fatal_error)
            return True
        if self._backend.is_hung:
            _log.critical("engine_stuck", stall_timeout_s=self._stall_timeout_s)
            return True
        if self.reload_requested and (self._reload_task is None or self._reload_task.done()):
            self.reload_requested = False
            self._reload_task = asyncio.create_task(self._reload())
        return False

    def begin_shutdown(self, drain_timeout_s: float) -> None:
        """Allow `drain_timeout_s` seconds until the end of the process, and cancel a reload."""
        if self._watchdog_s is not None:
            faulthandler.dump_traceback_later(drain_timeout_s + self._watchdog_s, exit=True)
        self._backend.heartbeat.stop()
        if self._reload_task is not None:
            self._reload_task.cancel()

    async def _reload(self) -> None:
        try:
            await self._backend.reload()
        except ServiceError as error:
            _log.error("reload_failed", reason=str(error), exc_info=error)
        else:
            _log.info("reloaded", model=self._backend.served_model.model.name)
