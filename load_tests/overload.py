"""Send ten times what the service can do: whether it goes on working, rejects the rest well, and recovers."""

import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from tqdm import tqdm

from load_tests.images import payloads
from load_tests.load_generator import Client, Request, arrivals, post, run
from load_tests.process_monitor import PATHS, MonitoredRun, probing
from load_tests.request_log import Chosen, Record, Row, Verdict, percentile
from load_tests.service import ServiceFailed
from resnet_service.client import Client as Service

_WARM_UP: Final = 0.1
"""As a share of the time for which the peak is measured."""
_SETTLED_S: Final = 20.0
_ALONE: Final = 20
_LIGHT: Final = 0.2
_LIGHTEST_S: Final = 0.1
_NORMAL: Final = 2.0
_NORMAL_S: Final = 0.02
"""A latency of up to twice an unloaded request's, and this much for the machine's own moods, is normal."""
_IN_A_ROW: Final = 3
_GIVE_UP_S: Final = 30.0

_GOODPUT: Final = 0.9
_REJECTION_S: Final = 0.05
_PROBE_S: Final = 0.1
_GROWTH: Final = 0.05
_RECOVERY_S: Final = 2.0


@dataclass(frozen=True)
class Overload:
    """What came of an overload; times are seconds on one clock, which begins with it.

    `peak_rps` is the rate of answers of a closed loop before it, `alone_s` an unloaded request's median
    latency, and `deadline_s` the service's own limit. `load` are the requests of the overload, `light` those
    of the light load that follows at once.
    """

    factor: float
    peak_rps: float
    alone_s: float
    deadline_s: float
    load: Record
    light: Record
    watched: MonitoredRun

    @property
    def goodput_rps(self) -> float:
        """How many images were classified a second while too many came."""
        return self.load.per_second(self.load.were(200))

    @property
    def retry_after_ratio(self) -> float:
        """Median over the rejections of the wait that they announced over what it would have been.

        That is taken from the next request that was accepted: it waited for what was waiting then. Whole
        seconds are announced, rounded up. nan where nothing was rejected.
        """
        rejected = self.load.were(429) & ~np.isnan(self.load.retry_after_s)
        accepted = np.flatnonzero(self.load.were(200))
        following = np.searchsorted(self.load.due_s[accepted], self.load.due_s[rejected])
        known = following < len(accepted)
        truth = self.load.latency_s[accepted[following[known]]]
        return percentile(self.load.retry_after_s[rejected][known] / truth, 50)

    @property
    def settled_s(self) -> float:
        """From when on memory should not grow."""
        return min(_SETTLED_S, self.load.seconds / 4)

    @property
    def rss_growth(self) -> float:
        """The most memory after the overload had settled, over what it was then, less one."""
        watched = self.watched
        later = watched.rss_bytes[watched.at_s >= self.settled_s]
        return float(later.max() / later[0] - 1) if len(later) else float("nan")

    @property
    def backlog_s(self) -> float:
        """How long after the overload the last of what it had brought was answered."""
        done_s = self.load.done_s[self.load.were(200)]
        return max(0.0, float(done_s.max(initial=0.0)) - self.load.seconds)

    @property
    def accepted_again_s(self) -> float:
        """Time from the overload's end from which on every request is accepted; inf if never."""
        return self._since_the_last(~self.light.were(200))

    @property
    def normal_again_s(self) -> float:
        """Time from the overload's end from which on requests are as quick as before; inf if never."""
        slow = self.light.latency_s > _normal_s(self.alone_s)
        return self._since_the_last(~self.light.were(200) | slow)

    def _since_the_last(self, bad: Chosen) -> float:
        first = int(np.flatnonzero(bad)[-1]) + 1 if bad.any() else 0
        return float(self.light.due_s[first] - self.load.seconds) if first < len(bad) else float("inf")

    def figures(self) -> Iterator[tuple[str, str]]:
        """Return what was measured and its figure, for a table."""
        load, watched = self.load, self.watched
        during = watched.rss_bytes[watched.between(0, load.seconds)] / 2**20
        yield "peak, answered/s", f"{self.peak_rps:.1f}"
        yield "sent/s", f"{len(load) / load.seconds:.1f} for {load.seconds:.0f} s"
        yield "answers by status", ", ".join(f"{name}: {n:,}" for name, n in load.outcomes().items())
        for name, status in (("accepted", 200), ("rejected", 429)):
            p50, p99 = (load.latency(part, load.were(status)) * 1e3 for part in (50, 99))
            yield f"{name}: p50, p99", f"{p50:,.0f} ms, {p99:,.0f} ms"
        yield "Retry-After over the wait that it announced, median", f"{self.retry_after_ratio:.2f}"
        if len(during):
            yield (
                "memory: begin, most, end",
                " MiB, ".join(
                    f"{value:,.0f}" for value in (during[0], during.max(), watched.rss_bytes[-1] / 2**20)
                )
                + " MiB",
            )
        yield "one request alone, median", f"{self.alone_s * 1e3:.0f} ms"
        yield "afterwards: the backlog was worked off after", f"{self.backlog_s:.1f} s"
        yield "afterwards: requests were accepted again after", f"{self.accepted_again_s:.1f} s"
        yield "afterwards: latency was normal again after", f"{self.normal_again_s:.1f} s"
        yield "sent late, p99", f"{percentile(load.late_s, 99) * 1e3:.0f} ms"
        yield "CPU of the load generator", f"{load.cpu_s / max(1, len(load)) * 1e6:.0f} us a request"

    def rows(self) -> Iterator[Verdict]:
        """Return each promise, its figure, and whether it was kept."""
        load = self.load
        share = self.goodput_rps / self.peak_rps
        accepted_s = load.latency(99, load.were(200))
        rejected = load.were(429)
        rejected_s = load.latency(99, rejected)
        silent = int((rejected & np.isnan(load.retry_after_s)).sum())
        other = int((~load.were(200, 429)).sum())
        yield Verdict(
            f"goodput is at least {_GOODPUT:.0%} of the peak",
            f"{self.goodput_rps:.1f}/s, {share:.0%}",
            share >= _GOODPUT,
        )
        yield Verdict(
            f"p99 of the accepted is within the deadline of {self.deadline_s:g} s",
            f"{accepted_s:.2f} s",
            accepted_s <= self.deadline_s,
        )
        yield Verdict(
            f"p99 of rejections is under {_REJECTION_S * 1e3:.0f} ms",
            f"{rejected_s * 1e3:.1f} ms" if rejected.any() else "none rejected",
            not rejected_s >= _REJECTION_S,
        )
        yield Verdict(
            "every 429 has a Retry-After", f"{silent:,} of {int(rejected.sum()):,} have none", not silent
        )
        yield Verdict("nothing but 200 and 429", f"{other:,} of {len(load):,} others", not other)
        yield Verdict(
            f"memory grows by less than {_GROWTH:.0%} after {self.settled_s:.0f} s",
            f"{self.rss_growth:+.1%}",
            self.rss_growth < _GROWTH,
        )
        yield from (self._probed(path) for path in PATHS)
        yield Verdict(
            f"requests are accepted {_RECOVERY_S:g} s after the end",
            f"after {self.accepted_again_s:.1f} s",
            self.accepted_again_s < _RECOVERY_S,
        )
        # The light load goes on while the backlog is worked off, and waits behind it.
        empty_s = self.backlog_s / (1 - _LIGHT)
        yield Verdict(
            f"latency is normal {_RECOVERY_S:g} s after what was accepted is worked off",
            f"after {self.normal_again_s:.1f} s, of which the backlog took {empty_s:.1f} s",
            self.normal_again_s < empty_s + _RECOVERY_S,
        )

    def _probed(self, path: str) -> Verdict:
        answers = self.watched.answers[path]
        p99, slowest = (percentile(answers.latency_s, part) for part in (99, 100))
        failed = int((~answers.were(200)).sum())
        return Verdict(
            f"{path} answers within {_PROBE_S * 1e3:.0f} ms",
            f"p99 {p99 * 1e3:.1f} ms, slowest {slowest * 1e3:.1f} ms, {failed} failed",
            slowest < _PROBE_S and not failed,
        )


def overload(
    url: str,
    pid: int,
    images: Sequence[bytes] | None = None,
    *,
    capacity_rps: float | None = None,
    factor: float = 10.0,
    seconds: float = 120.0,
    peak_s: float = 20.0,
    connections: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Overload:
    """Send `factor` times what the service can do for `seconds`, and then little, until it has recovered.

    What it can do is `capacity_rps`, or else measured first, for `peak_s` seconds in a closed loop of so many
    connections. `pid` is the service's process; `images` are encoded, by default drawn ones. Arrivals are
    a Poisson process.
    """
    requests = [post(url, image, "typical") for image in images or payloads("typical", None)]
    with Service(url) as service:
        limits = service.info()["limits"]
    deadline_s: float = limits["request_timeout_s"]
    if capacity_rps is None:
        capacity_rps = run(measured_peak(url, requests, min(connections, limits["max_queue"]), peak_s))
    alone_s = run(_alone(url, requests))
    chance = random.Random(seed)
    plan = [(due_s, chance.choice(requests)) for due_s in arrivals(factor * capacity_rps, seconds, seed)]
    pause_s = max(_LIGHTEST_S, 1 / (_LIGHT * capacity_rps))

    async def endured() -> tuple[Record, Record, MonitoredRun]:
        began = time.perf_counter()
        async with (
            probing(url, pid, began) as probes,
            Client(url, began) as load,
            Client(url, began) as light,
        ):

            def lightly() -> Iterator[tuple[float, Request]]:
                for number in itertools.count():
                    due_s = seconds + number * pause_s
                    if _is_normal(light.rows, alone_s) or due_s > seconds + deadline_s + _GIVE_UP_S:
                        return
                    yield due_s, requests[number % len(requests)]

            async with asyncio.TaskGroup() as group:
                shown = tqdm(plan, unit="request", disable=not progress)
                group.create_task(load.follow(shown, deadline_s + _GIVE_UP_S))
                group.create_task(light.follow(lightly(), deadline_s + _GIVE_UP_S))
        return load.record(seconds), light.record(light.now_s - seconds), probes.watched()

    return Overload(factor, capacity_rps, alone_s, deadline_s, *run(endured()))


async def measured_peak(url: str, requests: Sequence[Request], connections: int, seconds: float) -> float:
    """Return how many requests a second are answered, with whatever status, when so many always wait.

    Raises ServiceFailed where none is.
    """
    async with Client(url) as client:
        await client.saturate(requests, connections, seconds)
        record = client.record(seconds)
    rate = record.per_second(record.status > 0, _WARM_UP * seconds)
    if not rate:
        raise ServiceFailed(f"{url} does not answer: {record.outcomes()}")
    return rate


async def _alone(url: str, requests: Sequence[Request]) -> float:
    """Return the median latency of requests one after another."""
    async with Client(url) as client:
        for number in range(_ALONE):
            await client.ask(requests[number % len(requests)], client.now_s)
        record = client.record(client.now_s)
    return record.latency(50, record.were(200))


def _normal_s(alone_s: float) -> float:
    return _NORMAL * alone_s + _NORMAL_S


def _is_normal(rows: Sequence[Row], alone_s: float) -> bool:
    latest = rows[-_IN_A_ROW:]
    quick = [row for row in latest if row.status == 200 and row.latency_s <= _normal_s(alone_s)]
    return len(quick) == _IN_A_ROW
