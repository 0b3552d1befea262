"""What a process checks ten times a second: whether it has to stop, and whether a reload was requested."""

import asyncio
import faulthandler
import logging
import os
import threading
import time
from typing import Final, NoReturn

import structlog

from resnet_service.errors import Conflict, ServiceError
from resnet_service.server.backend import Backend
from resnet_service.server.management_server import ManagementServer

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

TICKS_PER_SECOND: Final = 10
"""How often `tick` has to be called, by the event loop of the process."""
_NATIVE_WATCHDOG_S: Final = 10.0
"""Time after which a thread that does not need the GIL ends the process, if the watchdog cannot."""


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
        self.has_failed = False
        self._backend = backend
        self._stall_timeout_s = stall_timeout_s
        self._management = management
        self._watchdog_s = stall_timeout_s + 1 if watchdog else None
        self._deadline = 0.0
        self._ticks = 0
        self._reload_task: asyncio.Task[None] | None = None

    def tick(self) -> bool:
        """Return whether the process has to stop; the reason is in the log. Starts a requested reload."""
        if self._watchdog_s is not None:
            self._allow(self._watchdog_s, arm=self._ticks % TICKS_PER_SECOND == 0)
        self._ticks += 1
        self._backend.heartbeat.beat()
        self.has_failed = self._log_failure()
        is_reloading = self._reload_task is not None and not self._reload_task.done()
        if self.reload_requested and not (is_reloading or self.has_failed):
            self.reload_requested = False
            self._reload_task = asyncio.create_task(self._reload())
        return self.has_failed

    def _log_failure(self) -> bool:
        """Return whether something has failed for which the process has to stop, and log it."""
        if self._management is not None and self._management.has_ended:
            _log.critical("management_port_failed")
            return True
        if self._backend.fatal_error is not None:
            _log.critical("engine_failed", exc_info=self._backend.fatal_error)
            return True
        if self._backend.is_hung:
            _log.critical("engine_stuck", stall_timeout_s=self._stall_timeout_s)
            return True
        return False

    def begin_shutdown(self, drain_timeout_s: float) -> None:
        """Allow `drain_timeout_s` seconds until the end of the process, and cancel a reload."""
        if self._watchdog_s is not None:
            self._allow(drain_timeout_s + self._watchdog_s, arm=True)
        self._backend.heartbeat.stop()
        if self._reload_task is not None:
            self._reload_task.cancel()

    def _allow(self, seconds: float, *, arm: bool) -> None:
        """End the process unless this is called again within `seconds`; `arm` the native watchdog, too."""
        if self._ticks and time.monotonic() > self._deadline:  # SIGSTOP: the other thread is late, too
            self._end_blocked()
        self._deadline = time.monotonic() + seconds
        if not self._ticks:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        if arm:
            # If another thread holds the GIL. It can crash, because it reads the stacks while they change.
            try:
                faulthandler.dump_traceback_later(seconds + _NATIVE_WATCHDOG_S, exit=True)
            except RuntimeError as error:  # the system allows no more threads: the next second tries again
                _log.warning("native_watchdog_not_started", reason=str(error))

    def _watch(self) -> None:
        """Print the stacks of all threads and end the process once the deadline has passed."""
        while (left_s := self._deadline - time.monotonic()) > 0:
            time.sleep(left_s)
        self._end_blocked()

    def _end_blocked(self) -> NoReturn:
        _log.critical("event_loop_blocked", seconds=self._watchdog_s)
        faulthandler.dump_traceback()
        exit_immediately()

    async def _reload(self) -> None:
        try:
            await self._backend.reload()
        except Conflict:  # while a load runs: the next `tick` tries again
            self.reload_requested = True
        except ServiceError as error:
            _log.error("reload_failed", reason=str(error), exc_info=error)
        else:
            _log.info("reloaded", models=self._backend.models.names)


def exit_immediately(status: int = 1) -> NoReturn:
    """Exit without waiting for threads, one of which may never end."""
    logging.shutdown()
    os._exit(status)
