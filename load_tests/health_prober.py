"""What a long run leaves behind: memory that stays, and answers that had to wait.

`python -m load_tests.health_prober HOST:PORT` is the process behind `HealthProber`.
"""

import http.client
import json
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import psutil

_EVERY_S: Final = 0.01
_TIMEOUT_S: Final = 30


def resident_mb(pid: int | None = None) -> float:
    """Return the memory that a process, this one for None, holds, in MB (10^6 bytes)."""
    return float(psutil.Process(pid).memory_info().rss) / 1e6


class HealthProber:
    """Asks /healthz a hundred times a second while the block runs; afterwards it knows how long that took.

    The route does nothing, so what it takes is what the event loop was held up by, or the machine, but for
    the 10 ms before it was asked. The requests come from a process of its own: beside a busy thread each
    would wait for the interpreter. Raises ChildProcessError where that process does not start.
    """

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).netloc
        self.beats = 0
        self.failures = 0
        self.slowest_ms = 0.0

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "load_tests.health_prober", self._address]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if not self._process.stdout.readline():  # it asks from now on
            raise ChildProcessError(f"{' '.join(command)} ended with {self._process.wait()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        told, _ = self._process.communicate()  # closes its input, which ends it
        if kind is None:
            self.beats, self.failures, self.slowest_ms = json.loads(told)


def _beat(address: str) -> tuple[int, int, float]:
    """Ask until standard input ends; return how often, how many failed, and the slowest, in ms."""
    end = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        end.set()

    threading.Thread(target=wait, name="end").start()
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT_S)
    sys.stdout.write("\n")
    sys.stdout.flush()
    beats, failures, slowest_s = 0, 0, 0.0
    due_s = time.perf_counter()
    while not end.wait(max(0.0, due_s - time.perf_counter())) or not beats:
        try:
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            answer.read()
            healthy = answer.status == 200
        except (OSError, http.client.HTTPException):
            healthy = False
            connection.close()  # the next request connects anew
        beats += 1
        failures += not healthy
        answered_s = time.perf_counter()
        slowest_s = max(slowest_s, answered_s - due_s)
        due_s = max(due_s + _EVERY_S, answered_s)
    connection.close()
    return beats, failures, slowest_s * 1e3


if __name__ == "__main__":
    json.dump(_beat(sys.argv[1]), sys.stdout)
