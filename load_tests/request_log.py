"""Every request of a run: when it was due, what came of it, and when."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from operator import itemgetter
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Chosen = npt.NDArray[np.bool_]

HUNG_UP: Final = "hung up"
"""The error of a request whose client closed the connection, as it should."""
UNANSWERED: Final = "no answer"
"""The error of a request that was given up at the end."""


class Row(NamedTuple):
    """One request: seconds on the run's clock when it was due, and from then on until the answer was whole.

    `late_s` is how long after that it was sent. The status is 0 where there was no answer, and `error` says
    why; `retry_after_s` is nan where the answer did not say.
    """

    due_s: float
    late_s: float
    kind: str
    status: int
    error: str
    latency_s: float
    retry_after_s: float


class Verdict(NamedTuple):
    """A promise, the figure that was measured, and whether it was kept."""

    promise: str
    figure: str
    kept: bool


@dataclass(frozen=True)
class Record:
    """The requests of a run, one array element each, in the order they were due: see Row.

    `seconds` is the time over which they were due, and `cpu_s` what it cost to send them: CPU time of the
    whole process that did.
    """

    seconds: float
    cpu_s: float
    due_s: Numbers
    late_s: Numbers
    kind: npt.NDArray[np.str_]
    status: npt.NDArray[np.int64]
    error: npt.NDArray[np.str_]
    latency_s: Numbers
    retry_after_s: Numbers

    @classmethod
    def of(cls, rows: Sequence[Row], seconds: float, cpu_s: float) -> "Record":
        """Make one of rows in any order."""
        ordered = sorted(rows, key=itemgetter(0))
        due, late, kind, status, error, latency, retry_after = (
            zip(*ordered, strict=True) if rows else [()] * 7
        )
        return cls(
            seconds,
            cpu_s,
            np.array(due, dtype=np.float64),
            np.array(late, dtype=np.float64),
            np.array(kind, dtype=np.str_),
            np.array(status, dtype=np.int64),
            np.array(error, dtype=np.str_),
            np.array(latency, dtype=np.float64),
            np.array(retry_after, dtype=np.float64),
        )

    def __len__(self) -> int:
        return len(self.due_s)

    @property
    def done_s(self) -> Numbers:
        """When each answer was whole."""
        return self.due_s + self.latency_s

    def were(self, *statuses: int) -> Chosen:
        """Say of each request whether it got one of these statuses."""
        return np.isin(self.status, statuses)

    def chosen(self, chosen: Chosen) -> "Record":
        """Return the record of these requests only."""
        columns = {field.name: getattr(self, field.name)[chosen] for field in fields(self)[2:]}
        return replace(self, **columns)

    def per_second(self, chosen: Chosen, begin_s: float = 0.0) -> float:
        """Return how many of the chosen were answered a second, from then to the last second of sending.

        What is answered only afterwards, while a queue empties, does not count.
        """
        done_s = self.done_s[chosen]
        return float(((done_s >= begin_s) & (done_s <= self.seconds)).sum() / (self.seconds - begin_s))

    def latency(self, percent: float, chosen: Chosen) -> float:
        """Return a percentile of the chosen requests' latency in seconds; nan where there are none."""
        return percentile(self.latency_s[chosen], percent)

    def outcomes(self) -> dict[str, int]:
        """Count the requests by status, or by the reason why there is none; the most frequent first."""
        names = (str(error or status) for status, error in zip(self.status, self.error, strict=True))
        return dict(Counter(names).most_common())


def percentile(values: Numbers, percent: float) -> float:
    """Return a percentile; nan of nothing."""
    return float(np.percentile(values, percent)) if len(values) else float("nan")
