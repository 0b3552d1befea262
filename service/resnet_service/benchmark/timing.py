"""Measure how long batches take: latency percentiles and images per second.

Measures any async callable that runs one batch. Does not print, and does not depend on HTTP or on models.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from statistics import fmean, quantiles
from typing import Final

from resnet_service.schemas import BenchmarkRow

WARMUP_BATCHES: Final = 2
"""Batches of each size that run before the measurement."""


async def time_batches(
    run: Callable[[int], Awaitable[object]], batch_sizes: Sequence[int], iterations: int
) -> list[BenchmarkRow]:
    """Time `iterations` calls of `run(batch_size)` for each batch size, after a warm-up.

    `run` must return only when the device has finished. Runs len(batch_sizes) * (iterations + WARMUP_BATCHES)
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
    # quantiles() needs at least two values.
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
