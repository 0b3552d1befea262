"""What an orchestrator sees of a service during a run: its probes' answers and its process."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import psutil

from load_tests.load_generator import Client, Request, get
from load_tests.request_log import Chosen, Numbers, Record

PATHS: Final = ("/healthz", "/metrics")
_EVERY_S: Final = 0.25
_SAMPLE_S: Final = 1.0


class Sample(NamedTuple):
    """The process at a time on the run's clock; `files` are open file descriptors, sockets among them."""

    at_s: float
    rss_bytes: int
    threads: int
    files: int


def look(process: psutil.Process, began: float) -> Sample:
    """Look at the process now; raises psutil.NoSuchProcess once it is gone."""
    at_s = time.perf_counter() - began
    with process.oneshot():
        return Sample(at_s, process.memory_info().rss, process.num_threads(), process.num_fds())


@dataclass(frozen=True)
class MonitoredRun:
    """The probes' answers by path, and the process in samples, one array element each."""

    answers: dict[str, Record]
    at_s: Numbers
    rss_bytes: Numbers
    threads: Numbers
    files: Numbers

    def between(self, begin_s: float, end_s: float) -> Chosen:
        """Say of each sample whether it was taken then."""
        return (self.at_s >= begin_s) & (self.at_s <= end_s)


class Probes:
    """Collects what `probing` sees."""

    def __init__(self, url: str, pid: int, began: float) -> None:
        self._requests = {path: get(url, path) for path in PATHS}
        self._clients = {path: Client(url, began) for path in PATHS}
        self._process = psutil.Process(pid)
        self._began = began
        self._samples = [look(self._process, began)]
        self._stopped = False

    def watched(self) -> MonitoredRun:
        """Return all that was seen until now."""
        seconds = time.perf_counter() - self._began
        columns = (np.array(column, dtype=np.float64) for column in zip(*self._samples, strict=True))
        return MonitoredRun(
            {path: client.record(seconds) for path, client in self._clients.items()}, *columns
        )

    async def run(self) -> None:
        """Watch until `stop`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_process())
            for path, client in self._clients.items():
                group.create_task(self._ask(client, self._requests[path]))

    def stop(self) -> None:
        """Ask no more; the answers still to come are waited for."""
        self._stopped = True

    async def _ask(self, client: Client, request: Request) -> None:
        async with client:
            await client.follow(self._plan(client.now_s, request))

    def _plan(self, begin_s: float, request: Request) -> Iterator[tuple[float, Request]]:
        for number in itertools.count():
            if self._stopped:
                return
            yield begin_s + number * _EVERY_S, request

    async def _watch_process(self) -> None:
        for number in itertools.count(1):
            pause_s = self._samples[0].at_s + number * _SAMPLE_S - (time.perf_counter() - self._began)
            await asyncio.sleep(max(0.0, pause_s))
            if self._stopped:
                return
            try:
                self._samples.append(look(self._process, self._began))
            except psutil.NoSuchProcess:
                return  # every request says so too


@asynccontextmanager
async def probing(url: str, pid: int, began: float) -> AsyncIterator[Probes]:
    """Ask /healthz and /metrics four times a second, and look at the process each second.

    As long as the block runs; each on a connection of its own, and whether or not the last one was answered.
    `began` is the run's begin on the performance counter.
    """
    probes = Probes(url, pid, began)
    async with asyncio.TaskGroup() as group:
        group.create_task(probes.run())
        try:
            yield probes
        finally:
            probes.stop()
