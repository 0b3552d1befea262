"""Configure uvicorn and run the application as a process."""

import asyncio
import faulthandler
import gc
import os
import resource
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import structlog
import uvicorn
from fastapi import FastAPI

from resnet_service.inference.worker_pool import has_running_calls
from resnet_service.machine import schedule_this_thread
from resnet_service.server.app import create_app, create_management_app
from resnet_service.server.connection_reader import ConnectionReader
from resnet_service.server.http_protocol import ConnectionRegistry
from resnet_service.server.listener import Listeners, bind_listeners, share_addresses, sockets_for_workers
from resnet_service.server.local_backend import LocalBackend
from resnet_service.server.management_server import ManagementServer
from resnet_service.server.process_monitor import exit_immediately
from resnet_service.server.rpc import MAX_CONNECTIONS
from resnet_service.server.signals import handle_signals
from resnet_service.server.state import AppState
from resnet_service.server.uvicorn_server import DRAIN_GRACE_S, InferenceServer
from resnet_service.server.workers.main_process import MainProcess

if TYPE_CHECKING:  # it needs an extra
    from resnet_service.server.rpc.server import GRPCServer

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

_SHUTDOWN_MARGIN_S: Final = 2.0
"""Part of the drain timeout that is reserved for the steps after the last response: closing the state and the
management port, which takes up to a second."""
_KEEP_ALIVE_S: Final = 75
"""Longer than the 60 s for which load balancers keep an idle connection: if the server closed it first, a
request could already be on its way."""
_SWITCH_INTERVAL_S: Final = 0.0002
"""Decoders need the GIL for moments between long calls without it; by default, each may wait 5 ms for it."""
_GC_THRESHOLD: Final = 10_000
"""New objects until a garbage collection; 700 by default, which is less than one request creates. With 4,000
waiting requests, the rate rose from 139 to 170 per second, and p99 of /healthz fell from 161 to 30 ms."""
_MANAGEMENT_CONNECTIONS: Final = 100
"""Probes and scrapers are few."""
_RESERVED_FILES: Final = 512
"""Open files that are not connections; a generous estimate, and of a low limit three quarters."""
_SECURITY_HEADERS: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Content-Security-Policy", "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
)
"""In all responses: browsers must not guess content types, show the service in frames, or send forms. The
pages have a second policy, of what they load: browsers apply both."""


def uvicorn_config(state: AppState, **options: Any) -> uvicorn.Config:
    """Return uvicorn's configuration of the main port; `options` override single values, such as `port`."""
    settings = state.settings
    reserved = _RESERVED_FILES + (min(MAX_CONNECTIONS, settings.max_connections) if settings.grpc_port else 0)
    limit = _connection_limit(settings.max_connections, reserved)
    registry = _registry(state, limit)
    state.metrics.report(state.metrics.connections, lambda: registry.open)
    defaults: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "lifespan": "on",
        "timeout_graceful_shutdown": settings.drain_timeout_s - DRAIN_GRACE_S - _SHUTDOWN_MARGIN_S,
    }
    return _config(create_app(state), registry, **(defaults | options))


def management_server(state: AppState, sockets: Sequence[socket.socket]) -> ManagementServer:
    """Return the server of the management port, which is not started, for sockets that do not listen."""
    registry = _registry(state, _MANAGEMENT_CONNECTIONS)
    # It is stopped when the main port has drained: a request that is left is not worth waiting for.
    config = _config(create_management_app(state), registry, lifespan="off", timeout_graceful_shutdown=1)
    return ManagementServer(config, sockets)


def _registry(state: AppState, limit: int) -> ConnectionRegistry:
    settings = state.settings
    return ConnectionRegistry(
        state.metrics, limit, settings.header_timeout_s, settings.read_timeout_s, settings.half_close_s
    )


def _config(app: FastAPI, registry: ConnectionRegistry, **options: Any) -> uvicorn.Config:
    buffer = memoryview(bytearray(ConnectionReader.BUFFER_BYTES))
    return uvicorn.Config(
        app,
        http=cast(Any, partial(ConnectionReader, registry, buffer)),
        log_config=None,
        access_log=False,
        server_header=False,
        headers=list(_SECURITY_HEADERS),
        proxy_headers=False,  # `ProxyMiddleware` handles them, for trusted proxies only
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE_S,
        **options,
    )


def run_server(state: AppState, listeners: Listeners | None = None) -> int:
    """Serve until a signal arrives and return the exit status.

    It is 0, or 1 if the start, the engine or the management port failed. `listeners` are closed at the end;
    by default, they are bound to the ports in the settings, which can raise AddressUnavailableError.
    """
    main, management_sockets, grpc_sockets = listeners or bind_listeners(state.settings)
    management = management_server(state, management_sockets) if management_sockets else None
    server = _create_server(state, main, management, grpc_sockets)

    def request_exit() -> None:
        server.should_exit = True

    def request_reload() -> None:
        server.monitor.reload_requested = True

    faulthandler.enable()  # a crash in native code prints the stacks of all threads
    tune_process()
    handle_signals(
        # Uvicorn replaces the handlers when it starts, and raises the handled signals again when it stops.
        server.handle_exit if isinstance(server, MainProcess) else lambda *_: request_exit(),
        request_exit,
        request_reload,
    )
    has_failed = False
    try:
        if isinstance(server, MainProcess):
            with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
                runner.run(server.serve())
            has_failed = server.has_failed
        else:
            server.run(sockets=main)
    except SystemExit:
        has_failed = True  # uvicorn has logged the reason
    if management is not None:
        has_failed = has_failed or management.has_ended
        management.stop()
    faulthandler.cancel_dump_traceback_later()
    _log.info("stopped")
    has_failed = has_failed or server.monitor.has_failed or state.backend.fatal_error is not None
    if state.prediction_log is not None and state.prediction_log.is_running:
        exit_immediately(int(has_failed))  # a call of its file system would delay the end, for minutes
    if has_running_calls():  # a failure, unless it is the warm-up of a start that a signal interrupts
        assert isinstance(state.backend, LocalBackend)
        exit_immediately(int(has_failed or state.backend.engines.is_warm))
    return int(has_failed)


def tune_process() -> None:
    """Configure garbage collection and scheduling, once everything is loaded and before threads start."""
    gc.collect()
    gc.set_threshold(_GC_THRESHOLD)
    gc.freeze()  # objects loaded so far live as long as the process; the collector need not scan them again
    gc.enable()  # disabled at the start
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    schedule_this_thread(for_throughput=True)


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the factory of the event loops that uvicorn uses; None for asyncio's default."""
    return uvicorn.Config(FastAPI(), log_config=None).get_loop_factory()


def _create_server(
    state: AppState,
    sockets: list[socket.socket],
    management: ManagementServer | None,
    grpc_sockets: Sequence[socket.socket],
) -> InferenceServer | MainProcess:
    backend = state.backend
    if isinstance(backend, LocalBackend) and backend.workers:
        listeners = sockets_for_workers(sockets, backend.workers)
        return MainProcess(state, listeners, management=management, grpc_sockets=grpc_sockets, watchdog=True)
    grpc = create_grpc_server(state, share_addresses(grpc_sockets))
    return InferenceServer(state, uvicorn_config(state), management=management, grpc=grpc, watchdog=True)


def create_grpc_server(
    state: AppState, addresses: Sequence[str], *, processes: int = 1
) -> "GRPCServer | None":
    """Return the gRPC server of this process, which is not started; None without addresses."""
    if not addresses:
        return None
    # Before the import: what a client sends could make gRPC's C library write any number of lines to the log.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from resnet_service.server.rpc.server import GRPCServer

    return GRPCServer(state, addresses, processes=processes)


def _connection_limit(requested: int, reserved: int) -> int:
    """Raise the limit on open files as far as allowed and return the number of connections it permits.

    `reserved` is the number of other files.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    required = requested + reserved
    if soft != resource.RLIM_INFINITY and soft < required:
        soft = required if hard == resource.RLIM_INFINITY else min(required, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < required:
            limit = max(soft // 4, soft - reserved)
            _log.warning("connection_limit_reduced", requested=requested, limit=limit, open_files=soft)
            return limit
    return requested
