"""Run the application under uvicorn, and end it without losing what was accepted."""

import asyncio
import faulthandler
import gc
import logging
import os
import resource
import signal
import socket
import sys
from functools import partial
from types import FrameType
from typing import Any, Final, NoReturn, cast

import structlog
import uvicorn

from resnet_service.errors import ServiceError
from resnet_service.server.app import create_app
from resnet_service.server.connections import ConnectionRegistry
from resnet_service.server.http_protocol import HTTPConnection
from resnet_service.server.state import AppState

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

# After SIGTERM, bytes already on their way to an open connection still become a request that is answered.
_LINGER_S: Final = 0.5
_CLOSING_S: Final = 2.0
"""Kept from the drain timeout for the steps after the last request."""
_KEEP_ALIVE_S: Final = 75
"""More than the 60 s for which load balancers keep a connection: a server that closes first may do it while a
request is on its way."""
_GIVE_UP_S: Final = 0.5
_SWITCH_S: Final = 0.0002
_TICKS_A_SECOND: Final = 10
"""Uvicorn's."""
_OTHER_FILES: Final = 512
"""Open files that are no connections, amply."""
_HEADERS: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    # The OpenAPI page has its scripts and styles from here, and some within it.
    ("Content-Security-Policy", "default-src 'self' 'unsafe-inline' data:; frame-ancestors 'none'"),
)
"""In every answer: nothing here is to be framed, guessed at, or fed with another site's scripts."""


class Server(uvicorn.Server):
    """Uvicorn's server that says where it listens, ends with the engine, and drains without resets.

    On SIGTERM it stops listening and stops being ready, and lets each open connection finish the request it
    is in or about to send; only then are idle connections closed.
    """

    def __init__(self, state: AppState, config: uvicorn.Config, *, watchdog: bool = False) -> None:
        """With `watchdog`, an event loop that stands still for the stall timeout ends the process."""
        super().__init__(config)
        self.reload_asked = False
        self._state = state
        self._watchdog_s = state.settings.stall_timeout_s + 1 if watchdog else None
        self._reloading: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say where."""
        await super().startup(sockets)
        engine = self._state.engine
        runtime = engine.runtimes[0]
        for server in self.servers:
            for listener in server.sockets:
                host, port = listener.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                _log.info(
                    "serving",
                    url=f"http://{shown}:{port}",
                    model=engine.model.name,
                    device=engine.devices,
                    precision=runtime.precision,
                    runtime=runtime.name,
                    streams_per_device=len(engine.runtimes),
                )

    async def on_tick(self, counter: int) -> bool:
        """End the server once the engine has failed or is stuck; reload the model where that was asked."""
        if self._watchdog_s is not None and counter % _TICKS_A_SECOND == 0:
            # A thread without Python, which needs nothing that could hang; it writes every stack.
            faulthandler.dump_traceback_later(self._watchdog_s, exit=True)
        engine = self._state.engine
        if engine.fatal_error is not None:
            _log.critical("the engine has failed; ending", exc_info=engine.fatal_error)
            return True
        if engine.is_hung:
            _log.critical("a batch or the decoding of an image never ends; ending")
            return True
        if self.reload_asked and not self._state.reloading:
            self.reload_asked = False
            self._reloading = asyncio.create_task(self._reload())
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal; end at once at the second."""
        if self.should_exit:
            _log.warning("a second signal; ending at once")
            _exit_immediately()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain: see the class."""
        if self._watchdog_s is not None:
            drain_s = self._state.settings.drain_timeout_s
            faulthandler.dump_traceback_later(drain_s + self._watchdog_s, exit=True)
        if self._reloading is not None:
            self._reloading.cancel()
        _log.info("draining", connections=len(self.server_state.connections))
        self._state.begin_drain()
        for server in self.servers:
            server.close()
        # Any answer from now on asks its client to open a new connection, elsewhere.
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        await asyncio.sleep(_LINGER_S)
        giving_up = asyncio.create_task(self._give_up())
        await super().shutdown(sockets)
        giving_up.cancel()

    async def _reload(self) -> None:
        try:
            await self._state.reload()
        except ServiceError as error:
            _log.error("not reloaded", reason=str(error), exc_info=error)
        else:
            _log.info("reloaded", model=self._state.engine.model.name)

    async def _give_up(self) -> None:
        """Answer with 503 what is not done shortly before uvicorn would cancel it without an answer."""
        await asyncio.sleep((self.config.timeout_graceful_shutdown or 0) - _GIVE_UP_S)
        await self._state.close_engines(timeout_s=0)


def uvicorn_config(state: AppState, **options: Any) -> uvicorn.Config:
    """Return how uvicorn is to serve; `options` replace the settings' address and port, say."""
    settings = state.settings
    limit = _connection_limit(settings.max_connections)
    connections = ConnectionRegistry(state.metrics, limit, settings.header_timeout_s, settings.read_timeout_s)
    state.metrics.connections.set_function(lambda: connections.open)
    given: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "timeout_graceful_shutdown": int(settings.drain_timeout_s - _LINGER_S - _CLOSING_S),
    }
    return uvicorn.Config(
        create_app(state),
        http=cast(Any, partial(HTTPConnection, connections)),
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        headers=list(_HEADERS),
        proxy_headers=False,  # nobody asks for the client's address
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE_S,
        **(given | options),
    )


def run_server(state: AppState) -> int:
    """Serve until a signal ends it; return the exit status: 0, or 1 where the engine or the socket failed."""
    server = Server(state, uvicorn_config(state), watchdog=True)
    faulthandler.enable()  # a crash in native code leaves every thread's stack
    # Uvicorn's handlers come later and, when it has ended, it raises the signals it obeyed once more.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    signal.signal(signal.SIGHUP, lambda *_: setattr(server, "reload_asked", True))
    gc.collect()
    gc.freeze()  # what is loaded by now stays, and need not be looked through again and again
    # Decoders need the GIL for moments between long calls without it; by default each may wait 5 ms for it.
    sys.setswitchinterval(_SWITCH_S)
    failed = False
    try:
        server.run()
    except SystemExit:
        failed = True  # uvicorn has logged why: the port is taken, say
    faulthandler.cancel_dump_traceback_later()
    engine = state.engine
    _log.info("stopped")
    if engine.has_running_calls:
        _exit_immediately()  # Python would wait for the thread that still works, which may never return
    return 1 if failed or engine.fatal_error is not None else 0


def _exit_immediately() -> NoReturn:
    logging.shutdown()
    os._exit(1)


def _connection_limit(wanted: int) -> int:
    """Return how many connections the limit on open files allows, which is raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < needed:
            _log.warning("fewer connections than asked for: the limit on open files", open_files=soft)
            return max(1, soft - _OTHER_FILES)
    return wanted
