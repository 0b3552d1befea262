"""What came of a run: figures of each scenario, the targets they broke, tables and plots."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

STAGES: Final = ("decode", "queue", "device")
_HEADER: Final = (
    "scenario",
    "sent/s",
    "answered/s",
    "rejected",
    "failed",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    *(f"{stage} p99 ms" for stage in STAGES),
    "sent late, p99 ms",
)


@dataclass(frozen=True)
class Requests:
    """The requests of one run, one array element each, in the order they were due.

    `seconds` is the time over which they were due; their columns are those of the locustfile.
    """

    scenario: str
    seconds: float
    due_s: npt.NDArray[np.float64]
    late_ms: npt.NDArray[np.float64]
    outcome: npt.NDArray[np.str_]
    latency_ms: npt.NDArray[np.float64]
    stages_ms: dict[str, npt.NDArray[np.float64]]

    @classmethod
    def read(cls, scenario: str, seconds: float, path: Path) -> "Requests":
        """Read what the locustfile wrote."""
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))

        def numbers(name: str) -> npt.NDArray[np.float64]:
            return np.array([row[name] or "nan" for row in rows], dtype=np.float64)

        return cls(
            scenario,
            seconds,
            numbers("due_s"),
            numbers("late_ms"),
            np.array([row["outcome"] for row in rows], dtype=np.str_),
            numbers("latency_ms"),
            {stage: numbers(f"{stage}_ms") for stage in STAGES},
        )

    def were(self, outcome: str) -> npt.NDArray[np.bool_]:
        """Say of each request whether this became of it."""
        return np.isin(self.outcome, outcome)

    @property
    def done_s(self) -> npt.NDArray[np.float64]:
        """When each answer came."""
        return self.due_s + self.latency_ms / 1e3

    def answered_per_second(self, begin: float = 0.0) -> float:
        """Return the rate of answers from this second to the last in which a request was due.

        What is answered only afterwards, while a queue empties, does not count.
        """
        done = self.done_s[self.were("answered")]
        return float(((done >= begin) & (done <= self.seconds)).sum() / (self.seconds - begin))

    def percentile(self, percent: float, values: npt.NDArray[np.float64] | None = None) -> float:
        """Return a percentile of the answered requests' latency, or of other values of theirs, in ms."""
        chosen = (self.latency_ms if values is None else values)[self.were("answered")]
        return float(np.percentile(chosen, percent)) if len(chosen) else float("nan")

    def row(self) -> list[str]:
        """Return the line of the table."""
        late = float(np.percentile(self.late_ms, 99)) if len(self.late_ms) else float("nan")
        return [
            self.scenario,
            f"{len(self.due_s) / self.seconds:.0f}",
            f"{self.answered_per_second():.0f}",
            f"{self.were('rejected').mean():.1%}" if len(self.due_s) else "-",
            str(self.were("failed").sum()),
            *(f"{self.percentile(part):.0f}" for part in (50, 95, 99)),
            *(f"{self.percentile(99, self.stages_ms[stage]):.0f}" for stage in STAGES),
            f"{late:.0f}",
        ]

    def broken(self, p99_ms: float, may_reject: bool) -> list[str]:
        """Return the targets that it broke.

        They are: no failed request; no rejected one unless `may_reject`; this p99 of the answered ones.
        """
        found = []
        if failed := int(self.were("failed").sum()):
            found.append(f"{self.scenario}: {failed} of {len(self.due_s)} requests failed")
        if not may_reject and (rejected := int(self.were("rejected").sum())):
            found.append(f"{self.scenario}: {rejected} of {len(self.due_s)} requests were rejected")
        if not self.percentile(99) <= p99_ms:
            found.append(f"{self.scenario}: p99 is {self.percentile(99):.0f} ms, over {p99_ms:.0f} ms")
        return found


def table(runs: Sequence[Requests]) -> str:
    """Return the runs as a Markdown table."""
    rows = [list(_HEADER), ["---"] * len(_HEADER), *(run.row() for run in runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = (" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"| {line} |" for line in lines)


def draw_timeline(run: Requests, capacity: float, path: Path) -> None:
    """Draw what arrived, what was answered and rejected each second, and each answer's latency."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    rates, latencies = figure.subplots(2, sharex=True)
    answered, rejected = run.were("answered"), run.were("rejected")
    edges = np.arange(0, run.seconds + 1)
    for name, moments in (
        ("sent", run.due_s),
        ("answered", run.done_s[answered]),
        ("rejected", run.done_s[rejected]),
    ):
        rates.stairs(np.histogram(moments, edges)[0], edges, label=name, linewidth=1.5)
    rates.axhline(capacity, color="gray", linestyle="--", linewidth=1, label="capacity")
    rates.set(title=run.scenario, ylabel="requests/s")
    rates.legend(loc="upper right")
    latencies.plot(run.due_s[answered], run.latency_ms[answered], ".", markersize=2)
    latencies.set(xlabel="second in which it was due", ylabel="latency, ms", ylim=(0, None))
    figure.savefig(path, dpi=110)


def draw_capacity(runs: Sequence[Requests], title: str, path: Path) -> None:
    """Draw latency, and the rate of answers, over the rate of arrivals."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    latency: Any = figure.subplots()
    sent = [len(run.due_s) / run.seconds for run in runs]
    for part in (50, 99):
        latency.plot(sent, [run.percentile(part) for run in runs], "o-", label=f"p{part}")
    latency.set(title=title, xlabel="requests/s sent", ylabel="latency of answers, ms", yscale="log")
    latency.grid(alpha=0.3, which="both")
    latency.legend(loc="upper left")
    answered = latency.twinx()
    answered.plot(sent, [run.answered_per_second() for run in runs], "s--", color="tab:green")
    answered.set_ylabel("requests/s answered", color="tab:green")
    answered.set_ylim(0, None)
    figure.savefig(path, dpi=110)
