"""How long a batch of n takes, learnt from the batches that ran."""

from collections.abc import Sequence
from typing import Final

_EMA_ALPHA: Final = 0.1
"""Weight of the newest batch in the mean of its size: the last 20 or so decide."""


class BatchCostModel:
    """Seconds for a batch of n items, a + b*n, fitted to the recent mean of each power of two.

    With a mean for each, what large batches taught is still known after an hour of small ones. How the latest
    batches, of whatever size, compare with the line is a factor on it, for devices that slow down or recover.
    """

    def __init__(self) -> None:
        self._means: dict[int, tuple[float, float]] = {}  # power of two: items and seconds
        self._a = 0.0
        self._b = 0.0
        self._correction = 1.0

    def observe(self, n: int, seconds: float) -> None:
        """Learn from one batch of `n` items that took `seconds`."""
        seconds = max(seconds, 1e-9)
        power = n.bit_length()
        mean_n, mean_t = self._means.get(power, (n, seconds))
        self._means[power] = mean_n + _EMA_ALPHA * (n - mean_n), mean_t + _EMA_ALPHA * (seconds - mean_t)
        if len(self._means) > 1:
            self._fit()
            self._correction += _EMA_ALPHA * (seconds / self._line(n) - self._correction)

    def seconds(self, n: int) -> float:
        """Estimate the time of a batch of `n` items; 0 before anything was observed."""
        if len(self._means) == 1:
            # A line through the origin errs towards too long for larger batches, a flat one for smaller.
            ((mean_n, mean_t),) = self._means.values()
            return mean_t * max(1.0, n / mean_n)
        return self._line(n) * self._correction

    def _line(self, n: int) -> float:
        return self._a + self._b * n

    def _fit(self) -> None:
        """Least squares of relative errors, a/t + b*n/t = 1, so that small batches count as large ones do."""
        x, y = zip(*((1 / t, n / t) for n, t in self._means.values()), strict=True)
        xx, xy, yy = _dot(x, x), _dot(x, y), _dot(y, y)
        determinant = xx * yy - xy * xy
        self._a = (yy * sum(x) - xy * sum(y)) / determinant
        self._b = (xx * sum(y) - xy * sum(x)) / determinant
        # Noise can tilt the line; time neither falls with n nor starts below zero.
        if self._a < 0:
            self._a, self._b = 0.0, sum(y) / yy
        elif self._b < 0:
            self._a, self._b = sum(x) / xx, 0.0


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(left, right, strict=True))
