"""Soak: half an hour of mixed load, to see whether memory, threads, open files or latency grow."""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import psutil
from tqdm import tqdm

from load_tests.http_connection import Request, batch_request, post_request
from load_tests.images import encoded_images
from load_tests.load_generator import LoadGenerator, arrival_times, measure_capacity, run_async
from load_tests.process_monitor import MonitorLog, ProcessSample, monitor_process, sample_process
from load_tests.report import Check
from load_tests.request_log import DISCONNECTED, BoolArray, RequestLog, percentile
from resnet_service.client import Client

SHARES: Final = {"typical": 0.71, "mixed": 0.1, "batch": 0.04, "bad": 0.1, "disconnect": 0.05}
"""Shares of the requests: an image of the usual size, of any size, several images at once, data that cannot
be decoded, and clients that disconnect, half of them in the middle of the image."""
_IMAGES_PER_BATCH: Final = 4
_CAPACITY_REQUESTS: Final = 1000
"""Requests in the mix of `SHARES` with which the capacity is measured."""

_SETTLE_SHARE: Final = 1 / 6
"""Memory and threads are judged after this share of the time: five minutes of thirty."""
_QUIET_S: Final = 10.0
_PLATEAU_SHARE: Final = 2 / 3
"""The plateau is the memory after this share of the time."""

_MAX_GROWTH: Final = 0.02
_MAX_P50_FACTOR: Final = 1.25
_MAX_P99_FACTOR: Final = 1.5


@dataclass(frozen=True)
class SoakResult:
    """The requests and the process during a soak; times are in seconds from its start.

    `capacity_rps` was measured before in a closed loop of the same mix. `before` and `after` are samples of
    the process without any connection of the test.
    """

    capacity_rps: float
    load: RequestLog
    monitor: MonitorLog
    before: ProcessSample
    after: ProcessSample

    @property
    def settled(self) -> BoolArray:
        """The mask of the samples by which memory and threads are judged."""
        return self.monitor.between(_SETTLE_SHARE * self.load.seconds, self.load.seconds)

    @property
    def plateau_bytes(self) -> float:
        """The median of the memory in the last third of the time; NaN without samples."""
        last_third = self.monitor.between(_PLATEAU_SHARE * self.load.seconds, self.load.seconds)
        return percentile(self.monitor.rss_bytes[last_third], 50)

    @property
    def plateau_at_s(self) -> float:
        """When memory first came within 2 % of the plateau; NaN if it never did."""
        is_near = abs(self.monitor.rss_bytes - self.plateau_bytes) <= _MAX_GROWTH * self.plateau_bytes
        return float(self.monitor.at_s[is_near][0]) if is_near.any() else float("nan")

    @property
    def growth(self) -> float:
        """The plateau above the memory when it settles, the median of a fifth of that time, as a share."""
        rss_bytes = self.monitor.rss_bytes[self.settled]
        return self.plateau_bytes / percentile(rss_bytes[: max(1, len(rss_bytes) // 5)], 50) - 1

    def latency_in_fifth(self, number: int) -> tuple[float, float]:
        """Return p50 and p99 of typical images in seconds, in one fifth of the time, 0 to 4."""
        load = self.load
        fifth_s = load.seconds / 5
        is_due = (load.due_s >= number * fifth_s) & (load.due_s < (number + 1) * fifth_s)
        mask = is_due & load.has_status(200) & load.has_kind("typical")
        return load.latency(50, mask), load.latency(99, mask)

    def statuses_by_kind(self) -> Iterator[tuple[str, dict[str, int]]]:
        """Yield (kind, number of requests by status or error)."""
        for kind in SHARES:
            yield kind, self.load.select(self.load.has_kind(kind)).count_statuses()

    def measurements(self) -> Iterator[tuple[str, str]]:
        """Yield (name, value) of each measurement."""
        load, monitor, settled = self.load, self.monitor, self.settled
        yield "capacity with this mix", f"{self.capacity_rps:.1f}/s"
        yield "sent", f"{len(load):,} in {load.seconds / 60:.1f} min, {len(load) / load.seconds:.1f}/s"
        for kind, counts in self.statuses_by_kind():
            yield f"{kind}: responses by status", ", ".join(f"{name}: {n:,}" for name, n in counts.items())
        for path, probes in monitor.probes.items():
            p99, slowest = (percentile(probes.latency_s, percent) * 1e3 for percent in (99, 100))
            counts = probes.count_statuses()
            yield path, f"p99 {p99:.1f} ms, slowest {slowest:.1f} ms, by status {counts}"
        rss = (self.before.rss_bytes, *monitor.rss_bytes[settled][:1], self.after.rss_bytes)
        yield "memory: start, settled, end", ", ".join(f"{value / 2**20:,.0f} MiB" for value in rss)
        yield (
            "plateau of memory",
            f"{self.plateau_bytes / 2**20:,.0f} MiB, reached {_time(self.plateau_at_s)}",
        )
        for name, before, during, after in (
            ("threads", self.before.threads, monitor.threads, self.after.threads),
            ("open files", self.before.open_files, monitor.open_files, self.after.open_files),
        ):
            yield f"{name}: start, maximum, end", f"{before}, {during.max():.0f}, {after}"
        yield "sent late, p99", f"{percentile(load.late_s, 99) * 1e3:.0f} ms"
        yield "CPU of the load generator", f"{load.cpu_s / max(1, len(load)) * 1e6:.0f} us per request"

    def checks(self) -> Iterator[Check]:
        """Yield each guarantee with its measured value."""
        yield from self._response_checks()
        yield Check(
            f"memory grows by less than {_MAX_GROWTH:.0%} once settled",
            f"{self.growth:+.2%}, plateau of {self.plateau_bytes / 2**20:,.0f} MiB",
            self.growth < _MAX_GROWTH,
        )
        threads = self.monitor.threads[self.settled]
        yield Check(
            "no thread is leaked",
            f"{threads[:1].sum():.0f} once settled, {self.after.threads} at the end",
            bool(len(threads) and self.after.threads <= threads[0]),
        )
        yield Check(
            "no open file is leaked",
            f"{self.before.open_files} before, {self.after.open_files} after",
            self.after.open_files <= self.before.open_files,
        )
        for name, first_s, last_s, factor in zip(
            ("p50", "p99"),
            self.latency_in_fifth(0),
            self.latency_in_fifth(4),
            (_MAX_P50_FACTOR, _MAX_P99_FACTOR),
            strict=True,
        ):
            yield Check(
                f"{name} in the last fifth is at most {factor:g} times that in the first",
                f"{first_s * 1e3:.0f} ms, then {last_s * 1e3:.0f} ms",
                last_s <= factor * first_s,
            )
        failed = sum(int((~probes.has_status(200)).sum()) for probes in self.monitor.probes.values())
        yield Check("/healthz and /metrics always respond", f"{failed} failed", not failed)

    def _response_checks(self) -> Iterator[Check]:
        load = self.load
        bad = load.has_kind("bad")
        valid = ~bad & ~load.has_kind("disconnect")
        server_errors = load.status >= 500
        lost = (load.status == 0) & ~np.isin(load.error, DISCONNECTED)
        yield Check(
            "no response is a 5xx", f"{int(server_errors.sum()):,} of {len(load):,}", not server_errors.any()
        )
        yield Check("no connection fails", f"{int(lost.sum()):,} of {len(load):,}", not lost.any())
        not_classified = valid & ~load.has_status(200)
        yield Check(
            "every valid image is classified",
            f"all but {int(not_classified.sum()):,} of {int(valid.sum()):,}",
            not not_classified.any(),
        )
        rejected = bad & (load.status >= 400) & (load.status < 500)
        yield Check(
            "every bad image gets a 4xx",
            f"{int(rejected.sum()):,} of {int(bad.sum()):,}",
            bool(rejected.sum() == bad.sum()),
        )


def run_soak(
    url: str,
    pid: int,
    seconds: float = 1800.0,
    *,
    share: float = 0.6,
    capacity_s: float = 20.0,
    connections: int = 16,
    seed: int = 0,
    show_progress: bool = False,
) -> SoakResult:
    """Send the mix of `SHARES` at `share` of the capacity for that mix, for `seconds`.

    The capacity is measured first, for `capacity_s` seconds with this many connections. `pid` is the
    service's process. Arrivals are a Poisson process. Raises psutil.NoSuchProcess if the service has ended.
    """
    rng = random.Random(seed)
    prepared = _prepare_requests(url)
    completed = {kind: share for kind, share in SHARES.items() if kind != "disconnect"}
    with Client(url) as client:
        connections = min(connections, client.info().limits.max_queue or connections)
    requests = [_choose(prepared, completed, rng) for _ in range(_CAPACITY_REQUESTS)]
    capacity_rps = measure_capacity(url, requests, connections, capacity_s)
    arrivals = arrival_times(share * capacity_rps, seconds, seed)
    plan = [(due_s, _choose(prepared, SHARES, rng)) for due_s in arrivals]

    started_at = time.perf_counter()
    process = psutil.Process(pid)
    before = sample_process(process, started_at)

    async def send_all() -> tuple[RequestLog, MonitorLog]:
        async with monitor_process(url, pid, started_at) as monitor, LoadGenerator(url, started_at) as load:
            await load.run_open_loop(tqdm(plan, unit="request", disable=not show_progress))
        return load.log(seconds), monitor.log()

    log, monitored = run_async(send_all())
    return SoakResult(capacity_rps, log, monitored, before, _sample_once_quiet(process, before, started_at))


def _time(seconds: float) -> str:
    return "never" if np.isnan(seconds) else f"after {seconds / 60:.1f} min"


def _prepare_requests(url: str) -> dict[str, list[Request]]:
    typical = encoded_images("typical")
    complete = [post_request(url, image, "disconnect") for image in typical]
    return {
        "typical": [post_request(url, image, "typical") for image in typical],
        "mixed": [post_request(url, image, "mixed") for image in encoded_images("mixed")],
        "bad": [post_request(url, image, "bad") for image in encoded_images("bad")],
        "batch": [batch_request(url, typical[:_IMAGES_PER_BATCH], "batch")],
        "disconnect": [
            request._replace(disconnect_after=len(request.content) // divisor)
            for request in complete
            for divisor in (1, 2)
        ],
    }


def _choose(
    prepared: Mapping[str, Sequence[Request]], shares: Mapping[str, float], rng: random.Random
) -> Request:
    [kind] = rng.choices(list(shares), list(shares.values()))
    return rng.choice(prepared[kind])


def _sample_once_quiet(process: psutil.Process, before: ProcessSample, started_at: float) -> ProcessSample:
    """Wait up to 10 s until the service has closed the test's connections, and sample the process."""
    ends = time.perf_counter() + _QUIET_S
    while True:
        sample = sample_process(process, started_at)
        if sample.open_files <= before.open_files or time.perf_counter() >= ends:
            return sample
        time.sleep(0.1)
