"""Estimate how long a batch of n items takes, and how long an item waits, from the batches that ran."""

import time
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

_MAX_FILL_FACTOR: Final = 1.5
"""Time of a batch that bulk items fill, as a multiple of its time without them."""
_EMA_ALPHA: Final = 0.1
"""Weight of the newest batch in the moving average of its size: about the last 20 batches count."""


@dataclass(frozen=True, slots=True)
class RunningBatch:
    """A batch that runs: its number of items, and its start on the performance counter."""

    size: int
    started_at: float


class BatchCostModel:
    """The time of a batch of n items as a line, a + b * n.

    The line is fitted to a moving average for each power of two, so that the model still predicts large
    batches after an hour of small ones. A correction factor on the line follows the ratio of measured to
    predicted time of the latest batches of any size, for devices that slow down or recover.
    """

    def __init__(self) -> None:
        self._means: dict[int, tuple[float, float]] = {}  # power of two -> mean items, mean seconds
        self._a = 0.0
        self._b = 0.0
        self._correction = 1.0

    def observe(self, n: int, seconds: float) -> None:
        """Update the model with one batch of `n` items that took `seconds`."""
        seconds = max(seconds, 1e-9)
        power = n.bit_length()
        mean_n, mean_t = self._means.get(power, (n, seconds))
        self._means[power] = mean_n + _EMA_ALPHA * (n - mean_n), mean_t + _EMA_ALPHA * (seconds - mean_t)
        if len(self._means) > 1:
            self._fit()
            self._correction += _EMA_ALPHA * (seconds / self._line(n) - self._correction)

    def seconds(self, n: int) -> float:
        """Estimate the seconds of a batch of `n` items; 0 before the first observation."""
        means = tuple(self._means.values())
        if len(means) == 1:
            # One size only. A line through the origin overestimates larger batches, a constant overestimates
            # smaller ones; an estimate that is too long is the safe error.
            ((mean_n, mean_t),) = means
            return mean_t * max(1.0, n / mean_n)
        return self._line(n) * self._correction

    def fill_limit(self, interactive: int, largest_batch: int) -> int:
        """Return up to how many items bulk ones fill a batch with so many interactive ones.

        Where the time of a batch grows with its size, filling it would delay the interactive items.
        """
        longest_s = _MAX_FILL_FACTOR * self.seconds(interactive)
        sizes = range(interactive + 1, largest_batch + 1)
        return interactive + bisect_right(sizes, longest_s, key=self.seconds)

    def estimate_wait(
        self, ahead: int, behind: int, running: Collection[RunningBatch], workers: int, largest_batch: int
    ) -> float:
        """Estimate the seconds until an item with `ahead` items in front of it is finished.

        The `behind` items behind it, which are bulk, fill its batch.
        `running` are the batches that occupy some of the `workers`. Returns 0 before the first observation.
        """
        until_idle = 0.0
        if running and len(running) >= workers:
            now = time.perf_counter()
            until_idle = min(
                max(0.0, self.seconds(batch.size) - (now - batch.started_at)) for batch in running
            )
        full_batches, in_last_batch = divmod(ahead, largest_batch)
        rounds = full_batches // max(1, workers)
        last_batch = min(in_last_batch + 1 + behind, self.fill_limit(in_last_batch + 1, largest_batch))
        return until_idle + rounds * self.seconds(largest_batch) + self.seconds(last_batch)

    def _line(self, n: int) -> float:
        return self._a + self._b * n

    def _fit(self) -> None:
        """Fit a and b by least squares of the relative errors, a/t + b*n/t = 1.

        With relative errors, small batches have the same weight as large ones.
        """
        x, y = zip(*((1 / t, n / t) for n, t in self._means.values()), strict=True)
        xx, xy, yy = _dot(x, x), _dot(x, y), _dot(y, y)
        determinant = xx * yy - xy * xy
        if not determinant:
            return  # rounding: one batch took a billionth of the time of another
        self._a = (yy * sum(x) - xy * sum(y)) / determinant
        self._b = (xx * sum(y) - xy * sum(x)) / determinant
        # Noise can tilt the line, but a time neither decreases with n nor is negative.
        if self._a < 0:
            self._a, self._b = 0.0, sum(y) / yy
        elif self._b < 0:
            self._a, self._b = sum(x) / xx, 0.0


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(left, right, strict=True))
