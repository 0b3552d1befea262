"""Run the application under uvicorn, and end it without losing what was accepted."""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from typing import Final

import structlog
import uvicorn

from service.api.app import create_app
from service.api.service import Service

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


class Server(uvicorn.Server):
    """Uvicorn's server that says where it listens, ends with the engine, and drains without resets.

    On SIGTERM it stops listening and stops being ready, and lets each open connection finish the request it
    is in or about to send; only then are idle connections closed.
    """

    def __init__(self, service: Service, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say where."""
        await super().startup(sockets)
        engine = self._service.engine
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
                    instances=len(engine.runtimes),
                )

    async def on_tick(self, counter: int) -> bool:
        """End the server once the engine has failed for good."""
        failure = self._service.engine.failure
        if failure is not None:
            _log.critical("the engine has failed; ending", exc_info=failure)
            return True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain: see the class."""
        _log.info("draining", connections=len(self.server_state.connections))
        self._service.engine.begin_drain()
        for server in self.servers:
            server.close()
        # Any answer from now on asks its client to open a new connection, elsewhere.
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        await asyncio.sleep(_LINGER_S)
        giving_up = asyncio.create_task(self._give_up())
        await super().shutdown(sockets)
        giving_up.cancel()

    async def _give_up(self) -> None:
        """Answer with 503 what is not done shortly before uvicorn would cancel it without an answer."""
        await asyncio.sleep((self.config.timeout_graceful_shutdown or 0) - _GIVE_UP_S)
        await self._service.engine.close(timeout_s=0)


def run(service: Service) -> int:
    """Serve until a signal ends it; return the exit status: 0, or 1 where the engine or the socket failed."""
    settings = service.settings
    config = uvicorn.Config(
        create_app(service),
        host=settings.host,
        port=settings.port,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody asks for the client's address
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(settings.drain_timeout_s - _LINGER_S - _CLOSING_S),
    )
    server = Server(service, config)
    # Uvicorn's handlers come later and, when it has ended, it raises the signals it obeyed once more.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    gc.collect()
    gc.freeze()  # what is loaded by now stays, and need not be looked through again and again
    # Decoders need the GIL for moments between long calls without it; by default each may wait 5 ms for it.
    sys.setswitchinterval(_SWITCH_S)
    failed = False
    try:
        server.run()
    except SystemExit:
        failed = True  # uvicorn has logged why: the port is taken, say
    _log.info("stopped")
    if service.engine.busy:
        # Python would wait for the thread that still works, which may never return.
        logging.shutdown()
        os._exit(1)
    return 1 if failed or service.engine.failure is not None else 0
