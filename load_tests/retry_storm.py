"""Many more clients than places, each of which sends its next request at once, also after a rejection."""

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from load_tests.health_prober import HealthProber, resident_mb
from load_tests.report import Check
from load_tests.wrk import run_wrk

PEAK_CONNECTIONS: Final = 64
"""Enough for the highest rate; all of these requests are in progress at the same time."""

_NETSTAT: Final = Path("/proc/net/netstat")
_PROBES_HZ: Final = 50
_MIN_GOODPUT: Final = 0.9
_MIN_GOODPUT_MANY: Final = 0.85
_MANY_CONNECTIONS: Final = 4000
_MAX_MANAGEMENT_MS: Final = 100
_MAX_MAIN_P99_MS: Final = 500
_MAX_RECOVERY_S: Final = 2.0
_MAX_GROWTH: Final = 0.05
_NORMAL_FACTOR: Final = 2.0
_NORMAL_MARGIN_S: Final = 0.02
_UNLOADED_REQUESTS: Final = 20


@dataclass(frozen=True)
class RetryStormResult:
    """What the clients and the probes of the two ports saw.

    `peak_rps` was measured before with 64 connections. Memory is in MB (10^6 bytes), before, in the middle
    and at the end. `recovery_s` is the time from the end until the latency of single requests was normal.
    `tcp_dropped` is the number of segments that the system dropped for want of memory: of one socket, or of
    all for TCP, which is then the limit.
    """

    image: str
    connections: int
    peak_rps: float
    goodput_rps: float
    rejected: int
    failed: int
    main: HealthProber
    management: HealthProber
    memory_mb: tuple[float, float, float]
    recovery_s: float
    tcp_dropped: int

    def checks(self) -> Iterator[Check]:
        """Yield each guarantee with its measured value."""
        name = f"{self.image}, {self.connections:,} clients"
        least = _MIN_GOODPUT_MANY if self.connections >= _MANY_CONNECTIONS else _MIN_GOODPUT
        share = self.goodput_rps / self.peak_rps
        yield Check(
            f"{name}: goodput is at least {least:.0%} of the peak",
            f"{self.goodput_rps:.0f}/s, {share:.0%}; {self.rejected:,} rejected",
            share >= least,
        )
        yield Check(f"{name}: no connection fails", f"{self.failed:,}", not self.failed)
        yield Check(
            f"{name}: /healthz on the management port is never over {_MAX_MANAGEMENT_MS} ms",
            f"slowest of {self.management.probes:,}: {self.management.slowest_ms:.0f} ms",
            self.management.slowest_ms <= _MAX_MANAGEMENT_MS and not self.management.failures,
        )
        yield Check(
            f"{name}: p99 of /healthz on the main port is under {_MAX_MAIN_P99_MS} ms",
            f"{self.main.p99_ms:.0f} ms, slowest {self.main.slowest_ms:.0f} ms",
            self.main.p99_ms < _MAX_MAIN_P99_MS and not self.main.failures,
        )
        yield Check(
            f"{name}: latency is normal within {_MAX_RECOVERY_S:g} s after the end",
            f"after {self.recovery_s:.1f} s",
            self.recovery_s <= _MAX_RECOVERY_S,
        )
        _, middle, end = self.memory_mb
        yield Check(
            f"{name}: memory grows by at most {_MAX_GROWTH:.0%} in the second half",
            f"{end / middle - 1:+.1%}",
            end <= (1 + _MAX_GROWTH) * middle,
        )

    def measurements(self) -> Iterator[tuple[str, str]]:
        """Yield (name, value) of each measurement."""
        before, middle, end = self.memory_mb
        text = f"{before:,.0f} MB, then {middle:,.0f} and {end:,.0f}"
        yield f"{self.image}, {self.connections:,} clients: memory", text
        if self.tcp_dropped:
            text = f"{self.tcp_dropped:,} segments dropped; perhaps net.ipv4.tcp_mem is the limit"
            yield f"{self.image}, {self.connections:,} clients: too little memory for sockets", text


def measure_peak(url: str, management_url: str, image: Path, seconds: int) -> float:
    """Return the requests/s with 64 connections while both ports are probed; raises what `run_wrk` raises."""
    with HealthProber(url, _PROBES_HZ), HealthProber(management_url, _PROBES_HZ):
        return run_wrk(f"{url}/predict", image, "multipart", PEAK_CONNECTIONS, seconds)["rate"]


def run_retry_storm(
    url: str, management_url: str, pid: int, image: Path, connections: int, peak_rps: float, seconds: int
) -> RetryStormResult:
    """Send `image` over `connections` for `seconds`, each in a closed loop, while both ports are probed.

    `pid` is the service's process. Raises what `run_wrk` raises.
    """
    unloaded_s = min(_predict(url, image) for _ in range(_UNLOADED_REQUESTS))
    before_mb, dropped_before = resident_mb(pid), _tcp_dropped()
    middle_mb: list[float] = []
    timer = threading.Timer(seconds / 2, lambda: middle_mb.append(resident_mb(pid)))
    with HealthProber(url, _PROBES_HZ) as main, HealthProber(management_url, _PROBES_HZ) as management:
        timer.start()
        try:
            figures = run_wrk(f"{url}/predict", image, "multipart", connections, seconds)
        finally:
            timer.cancel()
    ended = time.perf_counter()
    end_mb = resident_mb(pid)
    normal_s = _NORMAL_FACTOR * unloaded_s + _NORMAL_MARGIN_S
    while _predict(url, image) > normal_s:
        pass
    return RetryStormResult(
        image=f"{image.stat().st_size / 1e3:.0f} KB",
        connections=connections,
        peak_rps=peak_rps,
        goodput_rps=figures["rate"],
        rejected=int(figures["rejected"]),
        failed=int(figures["failed"]),
        main=main,
        management=management,
        memory_mb=(before_mb, middle_mb[0], end_mb),
        recovery_s=time.perf_counter() - ended,
        tcp_dropped=_tcp_dropped() - dropped_before,
    )


def _tcp_dropped() -> int:
    """Return how many received segments Linux has dropped for want of memory; 0 elsewhere."""
    if not _NETSTAT.exists():
        return 0
    names, values = (line.split() for line in _NETSTAT.read_text().splitlines() if line.startswith("TcpExt:"))
    return int(dict(zip(names, values, strict=True)).get("TCPRcvQDrop", 0))


def _predict(url: str, image: Path) -> float:
    """Return the seconds that one request takes, infinity if it is rejected; raises httpx.HTTPError."""
    started = time.perf_counter()
    response = httpx.post(f"{url}/predict", files={"file": image.read_bytes()}, timeout=60)
    if response.status_code == 429:
        return math.inf
    response.raise_for_status()
    return time.perf_counter() - started
