"""Run batches of every size before requests come, and find the largest one worth taking."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

_GAIN: Final = 1.02
"""By how much a batch of twice the size must be faster an item to be worth it.

An item waits for the batch that runs and for its own: where large ones bring nothing, small ones answer
evenly.
"""

_SHORT_S: Final = 0.05
"""Nobody minds so short a batch, and a busy service pays more for each one than a quiet device shows."""

_TIMINGS: Final = 3
"""Of each size. Others use the machine, and the fastest is the least disturbed."""


@dataclass(frozen=True)
class WarmupResult:
    """What warming up found: seconds for some sizes of batch, and the largest size worth taking."""

    seconds: dict[int, float]
    largest_useful_batch: int


async def warm_up(run: Callable[[int], Awaitable[float]], max_batch: int) -> WarmupResult:
    """Run batches of 1, 2, 4, ... and `max_batch` items, while larger ones pay.

    `run` takes a size and returns its seconds.
    """
    # Sizes in between cost nothing more: after 2 and 4, a first batch of 3 is as fast as a second.
    sizes = [1]
    while sizes[-1] < max_batch:
        sizes.append(min(2 * sizes[-1], max_batch))
    seconds: dict[int, float] = {}
    largest_useful_batch, best = 1, 0.0
    for size in sizes:
        if size > 2 * largest_useful_batch:  # half as many were no better than a quarter
            break
        await run(size)  # the first of its size, which takes longer
        fastest = min([await run(size) for _ in range(_TIMINGS)])
        rate = size / max(fastest, 1e-9)
        if seconds.get(largest_useful_batch, 0.0) < _SHORT_S or rate > best * _GAIN:
            largest_useful_batch, best = size, rate
        seconds[size] = fastest
    return WarmupResult(seconds, largest_useful_batch)
