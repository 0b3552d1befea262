"""Resource usage of the service: startup time, CPU time when idle, and memory before and after load."""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from load_tests.service import run_service
from load_tests.wrk import run_wrk

_CONNECTIONS: Final = 16
_WRK_RUN_S: Final = 1


@dataclass(frozen=True)
class ResourceUsage:
    """Seconds until ready, the share of one core used while idle (0..1), and resident memory in bytes."""

    first_start_s: float
    start_s: float
    idle: float
    requests: int
    memory_before: int
    memory_after: int

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield (name, value) of each measurement, for a table."""
        growth = self.memory_after / self.memory_before - 1
        after_mib = self.memory_after / 2**20
        yield "startup with an empty cache", f"{self.first_start_s:.1f} s"
        yield "startup with a cached network", f"{self.start_s:.1f} s"
        yield "CPU when idle", f"{self.idle:.2%} of a core"
        yield "memory after warm-up", f"{self.memory_before / 2**20:.0f} MiB"
        yield f"memory {self.requests:,} requests later", f"{after_mib:.0f} MiB ({growth:+.1%})"


def measure_resource_usage(
    command: Sequence[str], image: Path, log: Path, requests: int, idle_s: float
) -> ResourceUsage:
    """Start the service twice, leave it idle for `idle_s`, then post at least `requests` images.

    Memory is compared with its value after a tenth of the requests. Raises LoadTestError if the service does
    not start.
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        started = time.perf_counter()
        with run_service(command, log, environment):
            first_start_s = time.perf_counter() - started
        started = time.perf_counter()
        with run_service(command, log, environment) as (url, process):
            start_s = time.perf_counter() - started
            service = psutil.Process(process.pid)
            service.cpu_percent()
            time.sleep(idle_s)
            idle = service.cpu_percent() / 100
            _post_images(url, image, requests // 10)
            memory_before = service.memory_info().rss
            posted = _post_images(url, image, requests)
            memory_after = service.memory_info().rss
    return ResourceUsage(first_start_s, start_s, idle, posted, memory_before, memory_after)


def _post_images(url: str, image: Path, requests: int) -> int:
    """Post at least this many images and return how many succeeded."""
    posted = 0
    while posted < requests:
        figures = run_wrk(f"{url}/predict", image, "multipart", _CONNECTIONS, _WRK_RUN_S)
        posted += round(figures["rate"] * _WRK_RUN_S)
    return posted
