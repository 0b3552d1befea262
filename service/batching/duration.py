"""How long a batch of n takes, learnt from the batches that ran."""

from typing import Final

_MEMORY: Final = 0.95
"""Weight kept by older batches each time one is observed: the last 20 or so decide."""


class BatchDuration:
    """Seconds for a batch of n items, a + b*n, fitted by least squares that forget exponentially."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._n = 0.0
        self._t = 0.0
        self._nn = 0.0
        self._nt = 0.0

    def observe(self, n: int, seconds: float) -> None:
        """Learn from one batch of `n` items that took `seconds`."""
        self._weight = self._weight * _MEMORY + 1
        self._n = self._n * _MEMORY + n
        self._t = self._t * _MEMORY + seconds
        self._nn = self._nn * _MEMORY + n * n
        self._nt = self._nt * _MEMORY + n * seconds

    def seconds(self, n: int) -> float:
        """Estimate the time of a batch of `n` items; 0 before anything was observed."""
        if not self._weight:
            return 0.0
        mean_n, mean_t = self._n / self._weight, self._t / self._weight
        variance = self._nn / self._weight - mean_n**2
        if variance < 1e-9 * mean_n**2:
            # One size only: a line through the origin errs towards too long for larger batches.
            return mean_t / mean_n * max(n, mean_n)
        slope = (self._nt / self._weight - mean_n * mean_t) / variance
        # Noise can tilt the line; time neither falls with n nor starts below zero.
        slope = min(max(slope, 0.0), mean_t / mean_n)
        return mean_t + slope * (n - mean_n)
