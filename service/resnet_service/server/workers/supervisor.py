"""Start the HTTP workers of the main process, replace those that end, and end them all."""

import asyncio
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import CollectorRegistry

from resnet_service.images.sandbox import default_processes
from resnet_service.metrics import Metrics
from resnet_service.server.heartbeat import Heartbeat
from resnet_service.server.local_backend import LocalBackend
from resnet_service.server.state import CLOSE_TIMEOUT_S
from resnet_service.server.workers import process
from resnet_service.server.workers.process import WorkerConfig
from resnet_service.server.workers.process_metrics import AllProcesses, forget_gauges, reserve_files
from resnet_service.server.workers.shared_memory import SharedMemory
from resnet_service.server.workers.worker_connection import WorkerConnection
from resnet_service.server.workers.worker_models import WorkerModels
from resnet_service.settings import Settings

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

_PROGRAM: Final = process.__name__
_MAX_FAILED_STARTS: Final = 5
"""Times in a row that workers may end before they are ready."""
_START_TIMEOUT_S: Final = 120.0
_FIRST_DELAY_S: Final = 0.1
_MAX_DELAY_S: Final = 10.0
_STABLE_S: Final = 60.0
"""A worker that has run for this time is replaced without a delay."""
_MARGIN_S: Final = 3.0
"""Time after the stall timeout, at which the worker itself prints its stacks and exits, if it still can."""
_MAIN_PROCESS_CLOSE_S: Final = CLOSE_TIMEOUT_S + 0.2
"""Part of the drain timeout that the main process needs when all workers have ended."""


class Supervisor:
    """The HTTP workers of this process, from `start` to `stop`; on the event loop of the engines.

    failed: whether workers ended too often before they were ready, so that the process has to end.
    """

    def __init__(
        self,
        settings: Settings,
        backend: LocalBackend,
        metrics: Metrics,
        listeners: Sequence[Sequence[socket.socket]],
        grpc_addresses: Sequence[str] = (),
    ) -> None:
        """Start no worker yet. `listeners` are the bound sockets of each; all share `grpc_addresses`."""
        self.failed = False
        self._settings = _share(settings, len(listeners))
        self._backend = backend
        self._metrics = metrics
        self._listeners = listeners
        self._grpc_addresses = tuple(grpc_addresses)
        self._memory = SharedMemory()
        self._heartbeats = [Heartbeat(self._memory.beats[i : i + 1]) for i in range(len(listeners))]
        self._models = WorkerModels(backend, self._memory, len(listeners))
        self._connections: dict[int, WorkerConnection] = {}  # by index
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._is_draining = asyncio.Event()
        self._failed_starts = 0
        self._all_are_ready = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._folder = Path(tempfile.mkdtemp(prefix="resnet-service-"))
        workers = range(len(listeners))
        backend.counters.use(
            lambda version: [self._memory.request_counters(worker, version) for worker in workers]
        )
        metrics.upload_bytes.set_function(lambda: sum(self._memory.upload_bytes))
        backend.metrics_registry = CollectorRegistry()
        backend.metrics_registry.register(
            AllProcesses(metrics.registry, self._folder, lambda: [worker.pid for worker in self._running()])
        )
        backend.on_change = self._send_updates
        backend.wait_for_workers = self._wait_for_updates
        backend.engines.prepare = self._models.prepare
        backend.engines.on_closed = self._models.engine_closed

    async def start(self) -> None:
        """Start all workers, and return when all are ready, or when `failed` is set.

        Connections stay with the worker that accepts them, so the first ones must find all workers.
        """
        self._models.prepare(self._backend.engines.engines.values())
        self._models.refresh()
        self._tasks = [
            asyncio.create_task(self._keep_running(index)) for index in range(len(self._listeners))
        ]
        for task in self._tasks:
            task.add_done_callback(self._check)
        await self._all_are_ready.wait()

    async def drain(self) -> None:
        """Let the workers finish their requests and end; those that run after their timeout are killed."""
        self._is_draining.set()
        for index, connection in tuple(self._connections.items()):
            if connection.is_ready:
                connection.drain()
            else:
                self._processes[index].terminate()  # it drains at this signal if it accepts requests already
        tasks = asyncio.gather(*self._tasks, return_exceptions=True)  # `_check` has logged their errors
        try:
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await asyncio.shield(tasks)
        except TimeoutError:
            for worker in self._running():
                _log.error("worker_killed", pid=worker.pid)
                worker.kill()
            await tasks

    def stop(self) -> None:
        """Remove the files of the workers, which have ended."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def tick(self) -> None:
        """Do what has to be done several times a second."""
        self._models.publish()
        self._reap_orphans()
        for index, connection in self._connections.items():
            age_s = self._heartbeats[index].age_s
            if connection.is_ready and age_s > self._settings.stall_timeout_s + _MARGIN_S:
                _log.error("worker_stuck", index=index)
                self._processes[index].kill()

    def _reap_orphans(self) -> None:
        """As process 1 of a container, take the exit status of processes whose parent has ended."""
        if os.getpid() != 1:
            return
        own = {worker.pid for worker in self._processes.values()}
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid in own:
                return  # `_keep_running` takes it
            os.waitpid(ended.si_pid, 0)

    def _check(self, task: asyncio.Task[None]) -> None:
        """Fail if a worker cannot even be started, for example because there is too little memory."""
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.critical("worker_start_failed", exc_info=error)
            self.failed = True
            self._all_are_ready.set()

    def _running(self) -> list["subprocess.Popen[bytes]"]:
        return [worker for worker in tuple(self._processes.values()) if worker.poll() is None]

    async def _keep_running(self, index: int) -> None:
        """Run the worker with this index, and replace it whenever it ends."""
        delay_s = _FIRST_DELAY_S
        while not self._is_draining.is_set() and not self.failed:
            started_at = time.monotonic()
            try:
                connection = await self._run(index)
            except OSError as error:
                if not self._all_are_ready.is_set():
                    raise
                # Such as too many open files or a full disk: the others go on; the next attempt may succeed.
                _log.error("worker_not_started", index=index, reason=str(error))
            else:
                if self._is_draining.is_set():
                    return
                self._record_end(index, connection)
            if time.monotonic() - started_at > _STABLE_S:
                delay_s = _FIRST_DELAY_S
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._is_draining.wait()
            delay_s = min(2 * delay_s, _MAX_DELAY_S)

    def _record_end(self, index: int, connection: WorkerConnection) -> None:
        """Count a worker that has ended, and fail if too many in a row have ended before they were ready."""
        abandoned = self._memory.requests[index]
        self._memory.requests[index] = self._memory.upload_bytes[index] = 0
        self._metrics.worker_restarts.inc()
        self._metrics.abandoned_requests.inc(abandoned)
        status = self._processes[index].returncode
        _log.warning("worker_ended", index=index, status=status, abandoned=abandoned)
        self._failed_starts = 0 if connection.was_ready else self._failed_starts + 1
        if self._failed_starts >= _MAX_FAILED_STARTS:
            self.failed = True
            self._all_are_ready.set()

    async def _run(self, index: int) -> WorkerConnection:
        """Run one worker until it has ended, and release everything that it held.

        Raises OSError if the system does not start one.
        """
        connection = WorkerConnection(self._backend, self._memory)
        own_end, its_end = socket.socketpair()
        with its_end:
            try:
                worker = self._processes[index] = self._spawn(index, its_end)
            except OSError:
                own_end.close()
                raise
        self._connections[index] = connection
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: connection.channel, sock=own_end)
            connection.update(self._models.of_worker(index))
            with suppress(TimeoutError):  # the worker hangs
                async with asyncio.timeout(_START_TIMEOUT_S):
                    await connection.became_ready.wait()
            if connection.is_ready:
                self._backend.ready_workers += 1
                if self._backend.ready_workers == len(self._listeners):
                    self._all_are_ready.set()
                await connection.lost.wait()
                self._backend.ready_workers -= 1
        finally:
            del self._connections[index]
            connection.channel.close()
            if not connection.was_ready:
                worker.kill()
            await asyncio.to_thread(worker.wait)
            self._heartbeats[index].stop()
            forget_gauges(worker.pid, self._folder)
        return connection

    def _spawn(self, index: int, channel: socket.socket) -> "subprocess.Popen[bytes]":
        listener_fds = tuple(listener.fileno() for listener in self._listeners[index])
        config = WorkerConfig(
            self._settings,
            index,
            len(self._listeners),
            channel.fileno(),
            listener_fds,
            self._memory.fd,
            self._grpc_addresses,
        )
        worker = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", _PROGRAM],
            stdin=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "PROMETHEUS_MULTIPROC_DIR": str(self._folder),
                "OMP_NUM_THREADS": "1",  # the decoding threads use the cores
            },
            pass_fds=(*listener_fds, channel.fileno(), self._memory.fd),
            start_new_session=True,  # Ctrl-C does not reach it: the main process drains it
        )
        assert worker.stdin is not None
        # A worker that has ended by now is one that `_run` sees end.
        with suppress(BrokenPipeError), worker.stdin as stdin:
            try:
                reserve_files(worker.pid, self._folder)
            except OSError:
                worker.kill()
                worker.wait()
                raise
            stdin.write(pickle.dumps(config))
        return worker

    async def _wait_for_updates(self) -> None:
        """Wait until all workers that accept requests use the models that serve now."""
        ready = [connection for connection in self._connections.values() if connection.is_ready]
        await asyncio.gather(*(connection.is_updated.wait() for connection in ready))

    def _send_updates(self) -> None:
        self._models.refresh()
        for index, connection in self._connections.items():
            connection.update(self._models.of_worker(index))


def _share(settings: Settings, workers: int) -> Settings:
    """Return the settings of one worker: its part of the limits that apply to all of them together.

    Without a limit, each may decode on all cores, because all requests that are decoded can be of one worker.
    With its part of the threads, two workers answered 4,000 clients that retry at 70 to 75 % of their peak
    rate, with all threads at 82 to 86 %.
    """
    decode_threads = settings.decode_threads
    sandbox_processes = settings.sandbox_processes or default_processes(int(settings.sandbox_memory_mb * 1e6))
    return settings.model_copy(
        update={
            "decode_threads": None if decode_threads is None else ceil(decode_threads / workers),
            "sandbox_processes": ceil(sandbox_processes / workers),
            "max_connections": ceil(settings.max_connections / workers),
            "prediction_log_rate": settings.prediction_log_rate / workers,
            "drain_timeout_s": settings.drain_timeout_s - _MAIN_PROCESS_CLOSE_S,
        }
    )
