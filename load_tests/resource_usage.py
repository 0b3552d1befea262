"""What a service takes besides requests' time: to start, when idle, and in memory as it goes on."""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from load_tests.service import started
from load_tests.wrk import load

_CONNECTIONS: Final = 16
_TURN_S: Final = 5


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
        """Return what was measured and its figure, for a table."""
        growth = self.memory_after / self.memory_before - 1
        after_mib = self.memory_after / 2**20
        yield "from start to ready, nothing kept yet", f"{self.first_start_s:.1f} s"
        yield "from start to ready, network kept from before", f"{self.start_s:.1f} s"
        yield "idle", f"{self.idle:.2%} of a core"
        yield "memory when warm", f"{self.memory_before / 2**20:.0f} MiB"
        yield (
            f"memory {self.requests:,} requests later",
            f"{after_mib:.0f} MiB ({growth:+.1%})",
        )


def footprint(command: Sequence[str], image: Path, log: Path, requests: int, idle_s: float) -> ResourceUsage:
    """Start the service twice, leave it idle for a while, and then post `requests` images and more.

    Memory is compared with what a tenth of as many requests have left.
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        begun = time.perf_counter()
        with started(command, log, environment):
            first_start_s = time.perf_counter() - begun
        begun = time.perf_counter()
        with started(command, log, environment) as (url, process):
            start_s = time.perf_counter() - begun
            service = psutil.Process(process.pid)
            service.cpu_percent()
            time.sleep(idle_s)
            idle = service.cpu_percent() / 100
            _post(url, image, requests // 10)
            before = service.memory_info().rss
            posted = _post(url, image, requests)
            after = service.memory_info().rss
    return ResourceUsage(first_start_s, start_s, idle, posted, before, after)


def _post(url: str, image: Path, requests: int) -> int:
    posted = 0
    while posted < requests:
        posted += round(load(f"{url}/predict", image, "multipart", _CONNECTIONS, _TURN_S)["rate"] * _TURN_S)
    return posted
