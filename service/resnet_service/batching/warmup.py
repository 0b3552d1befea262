"""Run batches of every size before the first request, and find the largest useful batch size."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

_MIN_SPEEDUP: Final = 1.02
"""The smallest gain in items per second that makes a batch of twice the size useful.

An item waits for the running batch and for its own. If large batches are not faster per item, small ones give
more even response times.
"""

_SHORT_BATCH_S: Final = 0.05
"""Batches up to this long are always useful.

They barely delay anyone, and their fixed cost is higher under load than an idle device shows.
"""

_REPEATS: Final = 3
"""Timed runs per size. The fastest counts, because it was disturbed least by other processes."""


@dataclass(frozen=True)
class WarmupResult:
    """The outcome of a warm-up: measured seconds by batch size, and the largest useful batch size."""

    seconds: dict[int, float]
    largest_useful_batch: int


async def warm_up(run: Callable[[int], Awaitable[float]], max_batch: int) -> WarmupResult:
    """Run batches of 1, 2, 4, ... up to `max_batch` items, until a larger batch is not useful any more.

    `run` runs one batch of the size it gets and returns its time in seconds.
    """
    # The sizes in between need no warm-up: after 2 and 4, the first batch of 3 is as fast as the second.
    sizes = [1]
    while sizes[-1] < max_batch:
        sizes.append(min(2 * sizes[-1], max_batch))
    seconds: dict[int, float] = {}
    largest_useful_batch, best_rate = 1, 0.0
    for size in sizes:
        if size > 2 * largest_useful_batch:  # half this size was already not useful
            break
        await run(size)  # not timed: the first batch of a size takes longer
        fastest = min([await run(size) for _ in range(_REPEATS)])
        rate = size / max(fastest, 1e-9)
        if seconds.get(largest_useful_batch, 0.0) < _SHORT_BATCH_S or rate > best_rate * _MIN_SPEEDUP:
            largest_useful_batch, best_rate = size, rate
        seconds[size] = fastest
    return WarmupResult(seconds, largest_useful_batch)
