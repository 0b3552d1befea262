"""Half an hour of everyday load with everyday trouble: whether anything grows, slows down or fails."""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import psutil
from tqdm import tqdm

from load_tests.images import payloads
from load_tests.load_generator import Client, Request, arrivals, post, post_batch, run
from load_tests.overload import measured_peak
from load_tests.process_monitor import MonitoredRun, Sample, look, probing
from load_tests.request_log import HUNG_UP, Chosen, Numbers, Record, Verdict, percentile
from resnet_service.client import Client as Service

SHARES: Final = {"typical": 0.71, "mixed": 0.1, "batch": 0.04, "bad": 0.1, "hang-up": 0.05}
"""Of the requests: the usual image, one of any size, several at once, none that can be read, and clients
that do not wait, half of them in the middle of the image."""
_IMAGES_IN_BATCH: Final = 4
_VARIANTS: Final = 1000
"""Requests drawn from `SHARES`, in turn, to measure what the service can do with them."""

_SETTLED: Final = 1 / 6
"""Memory is judged after this share of the time: five minutes of thirty."""
_QUIET_S: Final = 10.0
_SAMPLES: Final = 1500

_GROWTH: Final = 0.02
_SLOWER_P50: Final = 1.25
_SLOWER_P99: Final = 1.5


@dataclass(frozen=True)
class Soak:
    """What came of a soak; times are seconds on one clock, which begins with it.

    `capacity_rps` is the rate of answers of a closed loop with the same requests, before. `before` and
    `after` show the process without any connection of the test's.
    """

    capacity_rps: float
    load: Record
    watched: MonitoredRun
    before: Sample
    after: Sample

    @property
    def settled(self) -> Chosen:
        """The samples by which memory and threads are judged."""
        return self.watched.between(_SETTLED * self.load.seconds, self.load.seconds)

    @property
    def slope_mb_per_hour(self) -> float:
        """How fast memory grows, in 10^6 bytes/h: the median slope of all pairs of samples (Theil-Sen)."""
        settled = self.settled
        return median_slope(self.watched.at_s[settled], self.watched.rss_bytes[settled]) * 3600 / 1e6

    @property
    def growth(self) -> float:
        """What that slope makes of the settled time, as a share of the memory at its begin."""
        settled = np.flatnonzero(self.settled)
        if len(settled) < 2:
            return float("nan")
        hours = (self.watched.at_s[settled[-1]] - self.watched.at_s[settled[0]]) / 3600
        first = self.watched.rss_bytes[settled[: max(1, len(settled) // 5)]]
        return float(self.slope_mb_per_hour * 1e6 * hours / np.median(first))

    def fifth(self, number: int) -> tuple[float, float]:
        """Return p50 and p99 of the typical images' latency, in s, in one fifth of the time, 0 to 4."""
        load = self.load
        length_s = load.seconds / 5
        in_it = (load.due_s >= number * length_s) & (load.due_s < (number + 1) * length_s)
        chosen = in_it & load.were(200) & np.isin(load.kind, "typical")
        return load.latency(50, chosen), load.latency(99, chosen)

    def outcomes(self) -> Iterator[tuple[str, dict[str, int]]]:
        """Return for each kind of request how many ended with which status."""
        for kind in SHARES:
            yield kind, self.load.chosen(np.isin(self.load.kind, kind)).outcomes()

    def figures(self) -> Iterator[tuple[str, str]]:
        """Return what was measured and its figure, for a table."""
        load, watched, settled = self.load, self.watched, self.settled
        yield "capacity with these requests", f"{self.capacity_rps:.1f}/s"
        yield "sent", f"{len(load):,} in {load.seconds / 60:.1f} min, {len(load) / load.seconds:.1f}/s"
        for kind, counts in self.outcomes():
            yield f"{kind}: answers by status", ", ".join(f"{name}: {n:,}" for name, n in counts.items())
        for path, answers in watched.answers.items():
            slowest = percentile(answers.latency_s, 100) * 1e3
            p99 = percentile(answers.latency_s, 99) * 1e3
            counts = answers.outcomes()
            yield path, f"p99 {p99:.1f} ms, slowest {slowest:.1f} ms, by status {counts}"
        yield (
            "memory: begin, settled, end",
            ", ".join(
                f"{value / 2**20:,.0f} MiB"
                for value in (self.before.rss_bytes, *watched.rss_bytes[settled][:1], self.after.rss_bytes)
            ),
        )
        yield "memory's slope", f"{self.slope_mb_per_hour:+.1f} MB/h"
        for name, before, during, after in (
            ("threads", self.before.threads, watched.threads, self.after.threads),
            ("open files", self.before.files, watched.files, self.after.files),
        ):
            yield f"{name}: begin, most, end", f"{before}, {during.max():.0f}, {after}"
        yield "sent late, p99", f"{percentile(load.late_s, 99) * 1e3:.0f} ms"
        yield "CPU of the load generator", f"{load.cpu_s / max(1, len(load)) * 1e6:.0f} us a request"

    def rows(self) -> Iterator[Verdict]:
        """Return each promise, its figure, and whether it was kept."""
        load = self.load
        bad, hung_up = np.isin(load.kind, "bad"), np.isin(load.error, HUNG_UP)
        good = ~bad & ~np.isin(load.kind, "hang-up")
        wrong = load.status >= 500
        lost = (load.status == 0) & ~hung_up
        yield Verdict("no answer is a 5xx", f"{int(wrong.sum()):,} of {len(load):,}", not wrong.any())
        yield Verdict("no connection fails", f"{int(lost.sum()):,} of {len(load):,}", not lost.any())
        rejected = good & ~load.were(200)
        yield Verdict(
            "every good image is classified",
            f"all but {int(rejected.sum()):,} of {int(good.sum()):,}",
            not rejected.any(),
        )
        rejected = bad & (load.status >= 400) & (load.status < 500)
        yield Verdict(
            "every bad one gets a 4xx",
            f"{int(rejected.sum()):,} of {int(bad.sum()):,}",
            bool(rejected.sum() == bad.sum()),
        )
        yield Verdict(
            f"memory grows by less than {_GROWTH:.0%} once settled",
            f"{self.growth:+.2%}, {self.slope_mb_per_hour:+.1f} MB/h",
            self.growth < _GROWTH,
        )
        threads = self.watched.threads[self.settled]
        yield Verdict(
            "no thread is left behind",
            f"{threads[:1].sum():.0f} once settled, {self.after.threads} at the end",
            bool(len(threads) and self.after.threads <= threads[0]),
        )
        yield Verdict(
            "no open file is left behind",
            f"{self.before.files} before, {self.after.files} afterwards",
            self.after.files <= self.before.files,
        )
        for name, first, last, limit in zip(
            ("p50", "p99"), self.fifth(0), self.fifth(4), (_SLOWER_P50, _SLOWER_P99), strict=True
        ):
            yield Verdict(
                f"{name} is at most {limit:g} times the first fifth's in the last",
                f"{first * 1e3:.0f} ms, then {last * 1e3:.0f} ms",
                last <= limit * first,
            )
        failed = sum(int((~answers.were(200)).sum()) for answers in self.watched.answers.values())
        yield Verdict("/healthz and /metrics always answer", f"{failed} failed", not failed)


def soak(
    url: str,
    pid: int,
    seconds: float = 1800.0,
    *,
    capacity_rps: float | None = None,
    share: float = 0.6,
    peak_s: float = 20.0,
    connections: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> Soak:
    """Send the mix of `SHARES` at `share` of what the service can do with it, for `seconds`.

    What it can do is `capacity_rps`, or else measured first, for `peak_s` seconds in a closed loop of so many
    connections. `pid` is the service's process. Arrivals are a Poisson process.
    Raises psutil.NoSuchProcess where the service has ended.
    """
    chance = random.Random(seed)
    prepared = _prepared(url)
    if capacity_rps is None:
        waiting = {kind: share for kind, share in SHARES.items() if kind != "hang-up"}
        with Service(url) as service:
            connections = min(connections, service.info()["limits"]["max_queue"])
        requests = [_drawn(prepared, waiting, chance) for _ in range(_VARIANTS)]
        capacity_rps = run(measured_peak(url, requests, connections, peak_s))
    plan = [
        (due_s, _drawn(prepared, SHARES, chance)) for due_s in arrivals(share * capacity_rps, seconds, seed)
    ]

    began = time.perf_counter()
    process = psutil.Process(pid)
    before = look(process, began)

    async def soaked() -> tuple[Record, MonitoredRun]:
        async with probing(url, pid, began) as probes, Client(url, began) as load:
            await load.follow(tqdm(plan, unit="request", disable=not progress))
        return load.record(seconds), probes.watched()

    return Soak(capacity_rps, *run(soaked()), before, _once_quiet(process, before, began))


def median_slope(x: Numbers, y: Numbers) -> float:
    """Return the median of the slopes between all pairs of points: a few outliers do not move it."""
    chosen = np.unique(np.linspace(0, len(x) - 1, _SAMPLES).astype(int)) if len(x) > _SAMPLES else slice(None)
    first, second = np.triu_indices(len(x[chosen]), k=1)
    run_, rise = x[chosen][second] - x[chosen][first], y[chosen][second] - y[chosen][first]
    return float(np.median(rise / run_)) if len(rise) else float("nan")


def _prepared(url: str) -> dict[str, list[Request]]:
    typical = payloads("typical", None)
    whole = [post(url, image, "hang-up") for image in typical]
    return {
        **{kind: [post(url, body, kind) for body in payloads(kind, None)] for kind in ("mixed", "bad")},
        "typical": [post(url, image, "typical") for image in typical],
        "batch": [post_batch(url, typical[:_IMAGES_IN_BATCH], "batch")],
        "hang-up": [
            request._replace(hang_up_after=len(request.content) // part)
            for request in whole
            for part in (1, 2)
        ],
    }


def _drawn(
    prepared: Mapping[str, Sequence[Request]], shares: Mapping[str, float], chance: random.Random
) -> Request:
    [kind] = chance.choices(list(shares), list(shares.values()))
    return chance.choice(prepared[kind])


def _once_quiet(process: psutil.Process, before: Sample, began: float) -> Sample:
    """Return the process once the service has noticed that the connections are closed, or does not."""
    ends = time.perf_counter() + _QUIET_S
    while (sample := look(process, began)).files > before.files and time.perf_counter() < ends:
        time.sleep(0.1)
    return sample
