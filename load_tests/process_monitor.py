"""What an orchestrator sees of a service during a run: probes, memory, threads and open files."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import psutil

from load_tests.http_connection import Request, get_request
from load_tests.load_generator import LoadGenerator
from load_tests.request_log import BoolArray, FloatArray, RequestLog

PROBED_PATHS: Final = ("/healthz", "/metrics")
_PROBE_INTERVAL_S: Final = 0.25
_SAMPLE_INTERVAL_S: Final = 1.0


class ProcessSample(NamedTuple):
    """The state of a process at a time on the run's clock; `open_files` includes sockets."""

    at_s: float
    rss_bytes: int
    threads: int
    open_files: int


def sample_process(process: psutil.Process, started_at: float) -> ProcessSample:
    """Return the state of the process now; raises psutil.NoSuchProcess once it has ended."""
    at_s = time.perf_counter() - started_at
    with process.oneshot():
        return ProcessSample(at_s, process.memory_info().rss, process.num_threads(), process.num_fds())


@dataclass(frozen=True)
class MonitorLog:
    """The responses to probes by path, and the samples of the process, one array element each."""

    probes: dict[str, RequestLog]
    at_s: FloatArray
    rss_bytes: FloatArray
    threads: FloatArray
    open_files: FloatArray

    def between(self, start_s: float, end_s: float) -> BoolArray:
        """Return for each sample whether it was taken in this time."""
        return (self.at_s >= start_s) & (self.at_s <= end_s)


class ProcessMonitor:
    """Probes a service and samples its process until `stop`; made by `monitor_process`."""

    def __init__(self, url: str, pid: int, started_at: float) -> None:
        self._requests = {path: get_request(url, path) for path in PROBED_PATHS}
        self._generators = {path: LoadGenerator(url, started_at) for path in PROBED_PATHS}
        self._process = psutil.Process(pid)
        self._started_at = started_at
        self._samples = [sample_process(self._process, started_at)]
        self._is_stopped = False

    def log(self) -> MonitorLog:
        """Return all responses and samples so far."""
        seconds = time.perf_counter() - self._started_at
        columns = (np.array(column, dtype=np.float64) for column in zip(*self._samples, strict=True))
        probes = {path: generator.log(seconds) for path, generator in self._generators.items()}
        return MonitorLog(probes, *columns)

    async def run(self) -> None:
        """Probe and sample until `stop`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sample())
            for path, generator in self._generators.items():
                group.create_task(self._probe(generator, self._requests[path]))

    def stop(self) -> None:
        """Send no more probes; responses that are outstanding are awaited."""
        self._is_stopped = True

    async def _probe(self, generator: LoadGenerator, request: Request) -> None:
        async with generator:
            await generator.run_open_loop(self._plan(generator.elapsed_s, request))

    def _plan(self, start_s: float, request: Request) -> Iterator[tuple[float, Request]]:
        for number in itertools.count():
            if self._is_stopped:
                return
            yield start_s + number * _PROBE_INTERVAL_S, request

    async def _sample(self) -> None:
        for number in itertools.count(1):
            due_s = self._samples[0].at_s + number * _SAMPLE_INTERVAL_S
            await asyncio.sleep(max(0.0, due_s - (time.perf_counter() - self._started_at)))
            if self._is_stopped:
                return
            try:
                self._samples.append(sample_process(self._process, self._started_at))
            except psutil.NoSuchProcess:
                return  # the requests fail too, and are in the log


@asynccontextmanager
async def monitor_process(url: str, pid: int, started_at: float) -> AsyncIterator[ProcessMonitor]:
    """Probe /healthz and /metrics four times a second and sample the process every second.

    This lasts until the block ends. Each path has a connection of its own and is probed at fixed times,
    whether or not the previous probe has a response. `started_at` is the start of the run, a value of
    time.perf_counter().
    """
    monitor = ProcessMonitor(url, pid, started_at)
    async with asyncio.TaskGroup() as group:
        group.create_task(monitor.run())
        try:
            yield monitor
        finally:
            monitor.stop()
