"""Probe /healthz at a high rate from a separate process, to find what delays the service's event loop.

`python -m load_tests.health_prober HOST:PORT RATE` is the process behind `HealthProber`.
"""

import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import psutil

_TIMEOUT_S: Final = 30


def resident_mb(pid: int | None = None) -> float:
    """Return the resident memory in MB (10^6 bytes): of a process and its children, or of this one alone.

    What several processes share counts for each.
    """
    process = psutil.Process(pid)
    children = [] if pid is None else process.children(recursive=True)
    return sum(float(each.memory_info().rss) for each in (process, *children)) / 1e6


class HealthProber:
    """Sends GET /healthz `rate_hz` times a second while its `with` block runs.

    After the block, `probes`, `failures`, `p99_ms` and `slowest_ms` have the results. The route does no
    work, so its latency is the time for which the event loop or the machine was busy. The requests come
    from a separate process, because beside a busy thread they would wait for the interpreter's lock. Raises
    ChildProcessError if that process does not start.
    """

    def __init__(self, url: str, rate_hz: int = 100) -> None:
        self._address = urlsplit(url).netloc
        self._rate_hz = rate_hz
        self.probes = 0
        self.failures = 0
        self.p99_ms = 0.0
        self.slowest_ms = 0.0

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "load_tests.health_prober", self._address, str(self._rate_hz)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if not self._process.stdout.readline():  # a line signals that probing has begun
            raise ChildProcessError(f"{' '.join(command)} ended with {self._process.wait()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        result, _ = self._process.communicate()  # closes its standard input, which ends it
        if kind is None:
            self.probes, self.failures, self.p99_ms, self.slowest_ms = json.loads(result)


def _probe_until_stdin_closes(address: str, interval_s: float) -> tuple[int, int, float, float]:
    """Probe until standard input closes; return the probes, the failures, p99 and the slowest in ms."""
    end = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        end.set()

    threading.Thread(target=wait_for_end, name="end").start()
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT_S)
    sys.stdout.write("\n")
    sys.stdout.flush()
    failures = 0
    seconds: list[float] = []
    due_s = time.perf_counter()
    while not end.wait(max(0.0, due_s - time.perf_counter())) or not seconds:
        try:
            connection.request("GET", "/healthz")
            response = connection.getresponse()
            response.read()
            is_healthy = response.status == 200
        except (OSError, http.client.HTTPException):
            is_healthy = False
            connection.close()  # the next request opens a new one
        failures += not is_healthy
        done_s = time.perf_counter()
        seconds.append(done_s - due_s)
        due_s = max(due_s + interval_s, done_s)
    connection.close()
    p99_s = statistics.quantiles(seconds * 2, n=100)[-1]  # two values at least
    return len(seconds), failures, p99_s * 1e3, max(seconds) * 1e3


if __name__ == "__main__":
    json.dump(_probe_until_stdin_closes(sys.argv[1], 1 / int(sys.argv[2])), sys.stdout)
