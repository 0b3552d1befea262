"""The program of an HTTP worker: `python -m resnet_service.server.workers.process`, started by `supervisor`.

Standard input has a pickled `WorkerConfig`. The worker ends with status 0 after a drain, and with status 1 as
soon as the main process has ended.
"""

import asyncio
import faulthandler
import gc
import os
import pickle
import shutil
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Final

import structlog

from resnet_service.log_config import configure_logging, count_dropped_lines
from resnet_service.malloc import limit_malloc_arenas
from resnet_service.settings import Settings

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker gets from the main process: settings, its index, and inherited file descriptors.

    `settings` are the worker's share of the limits, `workers` is how many there are; `channel_fd` is its Unix
    socket, `listener_fds` are bound sockets, and `memory_fd` is the shared memory. It has a gRPC server if
    there are `grpc_addresses`, which all workers share.
    """

    settings: Settings
    index: int
    workers: int
    channel_fd: int
    listener_fds: tuple[int, ...]
    memory_fd: int
    grpc_addresses: tuple[str, ...]


def main() -> None:
    """Run a worker until the main process ends it."""
    config: WorkerConfig = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the main process
    gc.disable()  # until everything is loaded, as in the main process
    limit_malloc_arenas()  # before the imports below start threads
    configure_logging(config.settings.log_level, config.settings.log_format)
    faulthandler.enable()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the main process reloads
    from resnet_service.server.run import event_loop_factory, tune_process

    tune_process()
    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        runner.run(_serve(config))


async def _serve(config: WorkerConfig) -> None:
    from resnet_service.metrics import Metrics
    from resnet_service.server.explainers import ExplanationLimit
    from resnet_service.server.prediction_logging import create_prediction_log
    from resnet_service.server.process_monitor import exit_immediately
    from resnet_service.server.run import create_grpc_server, uvicorn_config
    from resnet_service.server.state import AppState, create_decoder
    from resnet_service.server.uploads import UploadMemory
    from resnet_service.server.uvicorn_server import InferenceServer
    from resnet_service.server.workers.remote_backend import RemoteBackend
    from resnet_service.server.workers.shared_memory import SharedMemory
    from resnet_service.tracing import RequestTracer

    server: InferenceServer | None = None

    def drain() -> None:
        if server is None:  # not one request was accepted
            exit_immediately()
        server.should_exit = True

    def end() -> None:
        if server is None or not server.should_exit:
            _log.error("main_process_ended")
            shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)
        exit_immediately()

    settings = config.settings
    metrics = Metrics(in_worker=True)
    count_dropped_lines(metrics.log_lines_dropped.inc)
    memory = SharedMemory(config.memory_fd)
    upload_memory = UploadMemory(int(settings.upload_memory_mb * 1e6), memory.upload_bytes, config.index)
    backend = RemoteBackend(
        create_decoder(settings, metrics),
        metrics,
        memory,
        config.index,
        stall_timeout_s=settings.stall_timeout_s,
        on_drain=drain,
        on_lost=end,
    )
    channel = socket.socket(fileno=config.channel_fd)
    await asyncio.get_running_loop().create_unix_connection(lambda: backend.channel, sock=channel)
    await backend.updated.wait()
    tracer = RequestTracer(settings.traces_url) if settings.traces_url else None
    limit, log = ExplanationLimit(config.workers), create_prediction_log(settings, metrics, is_checked=True)
    state = AppState(settings, backend, metrics, upload_memory, tracer, limit, log)
    grpc = create_grpc_server(state, config.grpc_addresses, processes=config.workers)
    server = InferenceServer(
        state, uvicorn_config(state), grpc=grpc, watchdog=True, on_listening=backend.report_ready
    )
    await server.serve([socket.socket(fileno=fd) for fd in config.listener_fds])
    if log is not None and log.is_running:
        exit_immediately(0)  # a call of its file system would delay the end, for minutes


if __name__ == "__main__":
    main()
