"""Run batches of every size before the first request."""

from collections.abc import Awaitable, Callable
from typing import Final

_REPEATS: Final = 2
"""Timed runs per size. The fastest counts, because it was disturbed least by other processes."""


async def warm_up(run: Callable[[int], Awaitable[float]], largest_batch: int) -> dict[int, float]:
    """Run batches of 1, 2, 4, ... and `largest_batch` items, and return the seconds of each size.

    `run` runs one batch of the size it gets and returns its time in seconds. The times are first estimates,
    which the batches of requests correct: no choice depends on them.
    """
    # The sizes in between need no warm-up: after 2 and 4, the first batch of 3 is as fast as the second.
    sizes = [1]
    while sizes[-1] < largest_batch:
        sizes.append(min(2 * sizes[-1], largest_batch))
    seconds: dict[int, float] = {}
    for size in sizes:
        await run(size)  # not timed: the first batch of a size takes longer
        seconds[size] = min([await run(size) for _ in range(_REPEATS)])
    return seconds
