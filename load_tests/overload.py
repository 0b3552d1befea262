"""Overload: send a multiple of the capacity; check goodput, rejections and recovery."""

import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from tqdm import tqdm

from load_tests.http_connection import Request, post_request
from load_tests.images import encoded_images
from load_tests.load_generator import LoadGenerator, arrival_times, measure_capacity, run_async
from load_tests.process_monitor import PROBED_PATHS, MonitorLog, monitor_process
from load_tests.report import Check
from load_tests.request_log import BoolArray, RequestLog, RequestRecord, percentile
from resnet_service.client import Client

_SETTLE_S: Final = 20.0
_UNLOADED_REQUESTS: Final = 20
_LIGHT_LOAD: Final = 0.2
_MIN_LIGHT_INTERVAL_S: Final = 0.1
_NORMAL_FACTOR: Final = 2.0
_NORMAL_MARGIN_S: Final = 0.02
"""A latency is normal up to twice that of an unloaded service plus this margin for noise of the machine."""
_NORMAL_STREAK: Final = 3
_GRACE_S: Final = 30.0

_MIN_GOODPUT: Final = 0.9
_MAX_REJECTION_S: Final = 0.05
_UNPACED_REJECTIONS_RPS: Final = 100
_MAX_PACED_REJECTION_S: Final = 20.5
"""Rejections beyond that rate are delayed, by at most 20 s."""
_MAX_PROBE_S: Final = 0.1
_MAX_GROWTH: Final = 0.05
_MAX_RECOVERY_S: Final = 2.0


@dataclass(frozen=True)
class OverloadResult:
    """The requests and the process during an overload; times are in seconds from its start.

    `capacity_rps` was measured in a closed loop before, `unloaded_s` is the median latency without load, and
    `deadline_s` the service's request timeout. `load` has the requests of the overload, `light` those of the
    light load that follows at once.
    """

    factor: float
    capacity_rps: float
    unloaded_s: float
    deadline_s: float
    load: RequestLog
    light: RequestLog
    monitor: MonitorLog

    @property
    def goodput_rps(self) -> float:
        """Images classified per second during the overload."""
        return self.load.rate(self.load.has_status(200))

    @property
    def retry_after_ratio(self) -> float:
        """Median over the rejections of Retry-After divided by the actual wait; nan without rejections.

        The actual wait is the latency of the next accepted request, which waited behind the same queue.
        Retry-After is in whole seconds, rounded up.
        """
        rejected = self.load.has_status(429) & ~np.isnan(self.load.retry_after_s)
        accepted = np.flatnonzero(self.load.has_status(200))
        next_accepted = np.searchsorted(self.load.due_s[accepted], self.load.due_s[rejected])
        exists = next_accepted < len(accepted)
        actual_s = self.load.latency_s[accepted[next_accepted[exists]]]
        return percentile(self.load.retry_after_s[rejected][exists] / actual_s, 50)

    @property
    def settled_s(self) -> float:
        """The time after which memory should not grow."""
        return min(_SETTLE_S, self.load.seconds / 4)

    @property
    def rss_growth(self) -> float:
        """The growth of memory after `settled_s`, up to its maximum, as a share."""
        settled = self.monitor.rss_bytes[self.monitor.at_s >= self.settled_s]
        return float(settled.max() / settled[0] - 1) if len(settled) else float("nan")

    @property
    def backlog_s(self) -> float:
        """The time from the end of the overload until its last request was processed."""
        done_s = self.load.done_s[self.load.has_status(200)]
        return max(0.0, float(done_s.max(initial=0.0)) - self.load.seconds)

    @property
    def accepted_again_s(self) -> float:
        """The time from the end of the overload until every request is accepted; inf if never."""
        return self._first_after(~self.light.has_status(200))

    @property
    def normal_again_s(self) -> float:
        """The time from the end of the overload until latency is normal; inf if never."""
        is_slow = self.light.latency_s > _normal_latency_s(self.unloaded_s)
        return self._first_after(~self.light.has_status(200) | is_slow)

    def _first_after(self, failed: BoolArray) -> float:
        """Return when the first request after the last failed one was due."""
        first = int(np.flatnonzero(failed)[-1]) + 1 if failed.any() else 0
        return float(self.light.due_s[first] - self.load.seconds) if first < len(failed) else float("inf")

    def measurements(self) -> Iterator[tuple[str, str]]:
        """Yield (name, value) of each measurement."""
        load, monitor = self.load, self.monitor
        rss_mib = monitor.rss_bytes[monitor.between(0, load.seconds)] / 2**20
        yield "capacity", f"{self.capacity_rps:.1f}/s"
        yield "sent", f"{len(load) / load.seconds:.1f}/s for {load.seconds:.0f} s"
        counts = load.count_statuses()
        yield "responses by status", ", ".join(f"{name}: {count:,}" for name, count in counts.items())
        for name, status in (("accepted", 200), ("rejected", 429)):
            p50, p99 = (load.latency(percent, load.has_status(status)) * 1e3 for percent in (50, 99))
            yield f"{name}: p50, p99", f"{p50:,.0f} ms, {p99:,.0f} ms"
        yield "Retry-After divided by the actual wait, median", f"{self.retry_after_ratio:.2f}"
        if len(rss_mib):
            values = (rss_mib[0], rss_mib.max(), monitor.rss_bytes[-1] / 2**20)
            yield "memory: start, maximum, end", ", ".join(f"{value:,.0f} MiB" for value in values)
        yield "latency without load, median", f"{self.unloaded_s * 1e3:.0f} ms"
        yield "after the end: backlog processed", f"after {self.backlog_s:.1f} s"
        yield "after the end: all requests accepted", f"after {self.accepted_again_s:.1f} s"
        yield "after the end: latency normal", f"after {self.normal_again_s:.1f} s"
        yield "sent late, p99", f"{percentile(load.late_s, 99) * 1e3:.0f} ms"
        yield "CPU of the load generator", f"{load.cpu_s / max(1, len(load)) * 1e6:.0f} us per request"

    def checks(self) -> Iterator[Check]:
        """Yield each guarantee with its measured value."""
        load = self.load
        goodput = self.goodput_rps / self.capacity_rps
        accepted_s = load.latency(99, load.has_status(200))
        rejected = load.has_status(429)
        rejected_s = load.latency(99, rejected)
        is_paced = load.rate(rejected) > _UNPACED_REJECTIONS_RPS
        max_rejection_s = _MAX_PACED_REJECTION_S if is_paced else _MAX_REJECTION_S
        without_header = int((rejected & np.isnan(load.retry_after_s)).sum())
        others = int((~load.has_status(200, 429)).sum())
        yield Check(
            f"goodput is at least {_MIN_GOODPUT:.0%} of the capacity",
            f"{self.goodput_rps:.1f}/s, {goodput:.0%}",
            goodput >= _MIN_GOODPUT,
        )
        yield Check(
            f"p99 of accepted requests is within the deadline of {self.deadline_s:g} s",
            f"{accepted_s:.2f} s",
            accepted_s <= self.deadline_s,
        )
        yield Check(
            f"p99 of rejections is under {max_rejection_s * 1e3:,.0f} ms",
            f"{rejected_s * 1e3:.1f} ms" if rejected.any() else "none rejected",
            not rejected_s >= max_rejection_s,
        )
        yield Check(
            "every 429 has a Retry-After",
            f"{without_header:,} of {int(rejected.sum()):,} without",
            not without_header,
        )
        yield Check("every status is 200 or 429", f"{others:,} of {len(load):,} others", not others)
        yield Check(
            f"memory grows by less than {_MAX_GROWTH:.0%} after {self.settled_s:.0f} s",
            f"{self.rss_growth:+.1%}",
            self.rss_growth < _MAX_GROWTH,
        )
        yield from (self._check_probe(path) for path in PROBED_PATHS)
        yield Check(
            f"requests are accepted within {_MAX_RECOVERY_S:g} s of the end",
            f"after {self.accepted_again_s:.1f} s",
            self.accepted_again_s < _MAX_RECOVERY_S,
        )
        # The light load arrives while the backlog is processed, and waits behind it.
        backlog_s = self.backlog_s / (1 - _LIGHT_LOAD)
        yield Check(
            f"latency is normal within {_MAX_RECOVERY_S:g} s of the end of the backlog",
            f"after {self.normal_again_s:.1f} s, of which the backlog took {backlog_s:.1f} s",
            self.normal_again_s < backlog_s + _MAX_RECOVERY_S,
        )

    def _check_probe(self, path: str) -> Check:
        probes = self.monitor.probes[path]
        p99, slowest = (percentile(probes.latency_s, percent) for percent in (99, 100))
        failed = int((~probes.has_status(200)).sum())
        return Check(
            f"{path} responds within {_MAX_PROBE_S * 1e3:.0f} ms",
            f"p99 {p99 * 1e3:.1f} ms, slowest {slowest * 1e3:.1f} ms, {failed} failed",
            slowest < _MAX_PROBE_S and not failed,
        )


def run_overload(
    url: str,
    pid: int,
    images: Sequence[bytes] | None = None,
    *,
    factor: float = 10.0,
    seconds: float = 120.0,
    capacity_s: float = 20.0,
    connections: int = 64,
    seed: int = 0,
    show_progress: bool = False,
) -> OverloadResult:
    """Send `factor` times the capacity for `seconds`, then a light load until the service has recovered.

    The capacity is measured first, for `capacity_s` seconds with this many connections. `pid` is the
    service's process; `images` are encoded, by default generated. Arrivals are a Poisson process.
    """
    requests = [post_request(url, image, "typical") for image in images or encoded_images("typical")]
    with Client(url) as client:
        limits = client.info().limits
    deadline_s = limits.request_timeout_s
    capacity_rps = measure_capacity(
        url, requests, min(connections, limits.max_queue or connections), capacity_s
    )
    unloaded_s = run_async(_unloaded_latency_s(url, requests))
    rng = random.Random(seed)
    plan = [(due_s, rng.choice(requests)) for due_s in arrival_times(factor * capacity_rps, seconds, seed)]
    interval_s = max(_MIN_LIGHT_INTERVAL_S, 1 / (_LIGHT_LOAD * capacity_rps))

    async def send_all() -> tuple[RequestLog, RequestLog, MonitorLog]:
        started_at = time.perf_counter()
        async with (
            monitor_process(url, pid, started_at) as monitor,
            LoadGenerator(url, started_at) as load,
            LoadGenerator(url, started_at) as light,
        ):

            def light_plan() -> Iterator[tuple[float, Request]]:
                for number in itertools.count():
                    due_s = seconds + number * interval_s
                    if _is_normal(light.records, unloaded_s) or due_s > seconds + deadline_s + _GRACE_S:
                        return
                    yield due_s, requests[number % len(requests)]

            async with asyncio.TaskGroup() as group:
                overload_plan = tqdm(plan, unit="request", disable=not show_progress)
                group.create_task(load.run_open_loop(overload_plan, deadline_s + _GRACE_S))
                group.create_task(light.run_open_loop(light_plan(), deadline_s + _GRACE_S))
        return load.log(seconds), light.log(light.elapsed_s - seconds), monitor.log()

    return OverloadResult(factor, capacity_rps, unloaded_s, deadline_s, *run_async(send_all()))


async def _unloaded_latency_s(url: str, requests: Sequence[Request]) -> float:
    """Return the median latency of requests that are sent one after another."""
    async with LoadGenerator(url) as generator:
        for number in range(_UNLOADED_REQUESTS):
            await generator.send(requests[number % len(requests)], generator.elapsed_s)
        log = generator.log(generator.elapsed_s)
    return log.latency(50, log.has_status(200))


def _normal_latency_s(unloaded_s: float) -> float:
    return _NORMAL_FACTOR * unloaded_s + _NORMAL_MARGIN_S


def _is_normal(records: Sequence[RequestRecord], unloaded_s: float) -> bool:
    limit_s = _normal_latency_s(unloaded_s)
    latest = records[-_NORMAL_STREAK:]
    normal = [record for record in latest if record.status == 200 and record.latency_s <= limit_s]
    return len(normal) == _NORMAL_STREAK
