"""Measure how long batches take: latency percentiles and images a second.

Measures any async callable that runs one batch; prints nothing, knows no HTTP and no model.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles
from typing import Final

WARMUP_BATCHES: Final = 2
"""Batches of each size that run before the clock starts."""


@dataclass(frozen=True)
class BenchmarkRow:
    """One batch size's figures; latencies in milliseconds for a whole batch."""

    batch_size: int
    iterations: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    images_per_second: float


async def time_batches(
    run: Callable[[int], Awaitable[object]], batch_sizes: Sequence[int], iterations: int
) -> list[BenchmarkRow]:
    """Time `iterations` calls of `run(batch_size)` for each batch size, after a warm-up.

    `run` must return only once the device has finished. Runs len(batch_sizes) * (iterations + WARMUP_BATCHES)
    batches.
    """
    rows = []
    for batch_size in batch_sizes:
        for _ in range(WARMUP_BATCHES):
            await run(batch_size)
        seconds = []
        for _ in range(iterations):
            started = time.perf_counter()
            await run(batch_size)
            seconds.append(time.perf_counter() - started)
        rows.append(_row(batch_size, seconds))
    return rows


def _row(batch_size: int, seconds: Sequence[float]) -> BenchmarkRow:
    # One value has no percentiles of its own; quantiles() needs two.
    cuts = quantiles(seconds if len(seconds) > 1 else [*seconds, *seconds], n=100, method="inclusive")
    return BenchmarkRow(
        batch_size=batch_size,
        iterations=len(seconds),
        mean_ms=fmean(seconds) * 1e3,
        p50_ms=cuts[49] * 1e3,
        p95_ms=cuts[94] * 1e3,
        p99_ms=cuts[98] * 1e3,
        images_per_second=batch_size * len(seconds) / sum(seconds),
    )
