"""A service in a process of its own, for faults that come from the system around it."""

import os
import re
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import httpx
import psutil

from tests.support.http import files
from tests.support.processes import started
from tests.support.sandbox import sandbox_processes, wait_for

_CLIENTS: Final = 8
_TIMEOUT_S: Final = 60.0

Result = int | type[httpx.TransportError]
"""The status of a response, or the error of a client that has got none."""


@dataclass
class ChaosService:
    """A service, its URL, and the events of its log."""

    process: "subprocess.Popen[str]"
    url: str
    log: list[dict[str, Any]]

    def classify(self, image: bytes) -> Result:
        """Send an image in a connection of its own."""
        try:
            return httpx.post(f"{self.url}/predict", files=files(image), timeout=_TIMEOUT_S).status_code
        except httpx.TransportError as error:
            return type(error)

    def classify_all(self, images: Sequence[bytes]) -> "Counter[Result]":
        """Send images at the same time, and count the results."""
        with ThreadPoolExecutor(_CLIENTS) as pool:
            return Counter(pool.map(self.classify, images))

    def status(self, path: str) -> int:
        """Send a GET request in a connection of its own."""
        return httpx.get(f"{self.url}{path}", timeout=_TIMEOUT_S).status_code

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of /metrics with this name and these labels; 0 without any."""
        text = httpx.get(f"{self.url}/metrics", timeout=_TIMEOUT_S).text
        required = {f'{key}="{value}"' for key, value in labels.items()}
        rows = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
        return sum(float(value) for present, value in rows if required <= set(present.split(",")))

    @property
    def workers(self) -> list[psutil.Process]:
        """The HTTP workers."""
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if any("workers.process" in word for word in child.cmdline())]

    @property
    def decoders(self) -> list[psutil.Process]:
        """The processes of the sandbox."""
        return sandbox_processes(self.process.pid)

    @property
    def processes(self) -> list[psutil.Process]:
        """All of them."""
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]

    def assert_normal(self, *images: bytes) -> None:
        """Check that the process runs, is ready, and classifies these images."""
        assert self.process.poll() is None, self.log[-20:]
        wait_for(lambda: self.status("/readyz") == 200)
        assert self.status("/healthz") == 200
        assert self.classify_all(images) == {200: len(images)}


@contextmanager
def chaos_service(*flags: str, prefix: Sequence[str] = (), **variables: str) -> Iterator[ChaosService]:
    """Start a service; see `started`."""
    with started(*flags, program=None, limit=None, prefix=prefix, **variables) as (process, log, url):
        service = ChaosService(process, url, [])
        reader = threading.Thread(target=lambda: service.log.extend(log))  # a full pipe stops the service
        reader.start()
        try:
            yield service
        finally:
            children = service.decoders if process.poll() is None else []
            process.kill()  # its workers end then, and so do their decoders
            for child in children:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            reader.join()


@contextmanager
def stopped(processes: Iterable[psutil.Process]) -> Iterator[None]:
    """Stop processes until the end of the block; those that were killed meanwhile are left out."""
    pids = [process.pid for process in processes]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGCONT)
