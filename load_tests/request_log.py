"""The record of each request of a run, and the arrays and statistics made from them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from operator import itemgetter
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
StringArray = npt.NDArray[np.str_]

DISCONNECTED: Final = "disconnected"
"""The `error` of a request whose client closed the connection on purpose."""
NO_RESPONSE: Final = "no response"
"""The `error` of a request that had no response when the run ended."""


class RequestRecord(NamedTuple):
    """One request. Times are in seconds; a value that does not exist is nan.

    `due_s` is on the run's clock. `late_s` (until it was sent) and `latency_s` (until the response was
    complete) count from `due_s`. `status` is 0 if there was no response; `error` then has the reason.
    `retry_after_s`, `decode_s`, `queue_s` and `device_s` come from the headers Retry-After and Server-Timing.
    """

    due_s: float
    late_s: float
    kind: str
    status: int
    error: str
    latency_s: float
    retry_after_s: float = np.nan
    decode_s: float = np.nan
    queue_s: float = np.nan
    device_s: float = np.nan


@dataclass(frozen=True)
class RequestLog:
    """All requests of a run, one array element per request, in the order of `due_s`: see RequestRecord.

    `seconds` is the time over which requests were due. `cpu_s` is the CPU time of the process that sent them.
    """

    seconds: float
    cpu_s: float
    due_s: FloatArray
    late_s: FloatArray
    kind: StringArray
    status: npt.NDArray[np.int64]
    error: StringArray
    latency_s: FloatArray
    retry_after_s: FloatArray
    decode_s: FloatArray
    queue_s: FloatArray
    device_s: FloatArray

    @classmethod
    def from_records(
        cls, records: Sequence[RequestRecord], seconds: float, cpu_s: float = 0.0
    ) -> "RequestLog":
        """Make a log of records in any order."""
        types: dict[str, Any] = {"kind": np.str_, "status": np.int64, "error": np.str_}
        names = RequestRecord._fields
        columns = zip(*sorted(records, key=itemgetter(0)), strict=True) if records else [()] * len(names)
        arrays: dict[str, Any] = {
            name: np.array(column, dtype=types.get(name, np.float64))
            for name, column in zip(names, columns, strict=True)
        }
        return cls(seconds, cpu_s, **arrays)

    def __len__(self) -> int:
        return len(self.due_s)

    @property
    def done_s(self) -> FloatArray:
        """When each response was complete, on the run's clock."""
        return self.due_s + self.latency_s

    @cached_property
    def outcome(self) -> StringArray:
        """What became of each request.

        One of succeeded (200), rejected (429 with Retry-After), invalid (a 4xx for a bad image), disconnected
        (the client closed the connection on purpose) and failed (everything else).
        """
        bad = self.has_kind("bad")
        outcomes = [
            ("disconnected", np.isin(self.error, DISCONNECTED)),
            ("rejected", self.has_status(429) & ~np.isnan(self.retry_after_s)),
            ("invalid", bad & (self.status >= 400) & (self.status < 500)),
            ("succeeded", ~bad & self.has_status(200)),
        ]
        names, masks = zip(*outcomes, strict=True)
        return np.select(list(masks), list(names), "failed")

    def has_outcome(self, *outcomes: str) -> BoolArray:
        """Return for each request whether it had one of these outcomes."""
        return np.isin(self.outcome, outcomes)

    def has_status(self, *statuses: int) -> BoolArray:
        """Return for each request whether its response had one of these statuses."""
        return np.isin(self.status, statuses)

    def has_kind(self, kind: str) -> BoolArray:
        """Return for each request whether it was of this kind."""
        return np.isin(self.kind, kind)

    def select(self, mask: BoolArray) -> "RequestLog":
        """Return a log of the masked requests only."""
        columns = {field.name: getattr(self, field.name)[mask] for field in fields(self)[2:]}
        return replace(self, **columns)

    def rate(self, mask: BoolArray, start_s: float = 0.0) -> float:
        """Return responses/s to the masked requests, from `start_s` to the end of sending.

        Responses after the end of sending, while the queue empties, do not count.
        """
        done_s = self.done_s[mask]
        return float(((done_s >= start_s) & (done_s <= self.seconds)).sum() / (self.seconds - start_s))

    def latency(self, percent: float, mask: BoolArray) -> float:
        """Return a percentile of the masked requests' latency, in seconds; nan if there are none."""
        return percentile(self.latency_s[mask], percent)

    def count_statuses(self) -> dict[str, int]:
        """Count the requests by status, or by error if there was no response; the most frequent first."""
        names = (str(error or status) for status, error in zip(self.status, self.error, strict=True))
        return dict(Counter(names).most_common())


def percentile(values: FloatArray, percent: float) -> float:
    """Return a percentile; nan if there are no values."""
    return float(np.percentile(values, percent)) if len(values) else float("nan")
