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
    "refused",
    "failed",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    *(f"{stage} p99 ms" for stage in STAGES),
)


@dataclass(frozen=True)
class Requests:
    """The requests of one run, one array element each, in the order they were due; times in s and ms."""

    scenario: str
    due_s: npt.NDArray[np.float64]
    kind: npt.NDArray[np.str_]
    status: npt.NDArray[np.int64]
    latency_ms: npt.NDArray[np.float64]
    stages_ms: dict[str, npt.NDArray[np.float64]]

    @classmethod
    def read(cls, scenario: str, path: Path) -> "Requests":
        """Read what the locustfile wrote."""
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))

        def column(name: str, missing: str) -> list[str]:
            return [row[name] or missing for row in rows]

        def numbers(name: str) -> npt.NDArray[np.float64]:
            return np.array(column(name, "nan"), dtype=np.float64)

        return cls(
            scenario,
            numbers("due_s"),
            np.array(column("kind", "")),
            np.array(column("status", "0"), dtype=np.int64),
            numbers("latency_ms"),
            {stage: numbers(f"{stage}_ms") for stage in STAGES},
        )

    @property
    def seconds(self) -> float:
        """From the first request to the last."""
        return float(np.ptp(self.due_s)) or 1.0

    @property
    def answered(self) -> npt.NDArray[np.bool_]:
        """Which were answered with a classification."""
        return np.isin(self.status, 200)

    @property
    def refused(self) -> npt.NDArray[np.bool_]:
        """Which were refused since too many waited."""
        return np.isin(self.status, 429)

    @property
    def failed(self) -> npt.NDArray[np.bool_]:
        """Which got another answer than they deserve; a bad picture deserves a 4xx, a hang-up nothing."""
        bad = self.kind == "bad"
        deserved = np.where(bad, (self.status >= 400) & (self.status < 500), self.answered)
        return ~np.asarray(deserved | self.refused | (self.kind == "hang-up"), dtype=np.bool_)

    def percentile(self, percent: float, values: npt.NDArray[np.float64] | None = None) -> float:
        """Return a percentile of the answered requests' latency, or of other values of theirs, in ms."""
        chosen = (self.latency_ms if values is None else values)[self.answered]
        return float(np.percentile(chosen, percent)) if len(chosen) else float("nan")

    def row(self) -> list[str]:
        """Return the line of the table."""
        return [
            self.scenario,
            f"{len(self.due_s) / self.seconds:.0f}",
            f"{self.answered.sum() / self.seconds:.0f}",
            f"{self.refused.mean():.1%}",
            str(self.failed.sum()),
            *(f"{self.percentile(part):.0f}" for part in (50, 95, 99)),
            *(f"{self.percentile(99, self.stages_ms[stage]):.0f}" for stage in STAGES),
        ]

    def broken(self, p99_ms: float) -> list[str]:
        """Return the targets that it broke: no failed request, and this p99 of the answered ones."""
        found = []
        if self.failed.any():
            statuses = sorted({int(status) for status in self.status[self.failed]})
            found.append(f"{self.scenario}: {self.failed.sum()} requests failed, with status {statuses}")
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
    """Draw what arrived, what was answered and refused each second, and each answer's latency."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    rates, latencies = figure.subplots(2, sharex=True)
    edges = np.arange(0, run.due_s.max() + 1)
    for name, chosen in (("sent", run.status >= 0), ("answered", run.answered), ("refused", run.refused)):
        rates.stairs(np.histogram(run.due_s[chosen], edges)[0], edges, label=name, linewidth=1.5)
    rates.axhline(capacity, color="grey", linestyle="--", linewidth=1, label="capacity")
    rates.set(title=run.scenario, ylabel="requests/s")
    rates.legend(loc="upper right")
    latencies.plot(run.due_s[run.answered], run.latency_ms[run.answered], ".", markersize=2)
    latencies.set(xlabel="second in which it was due", ylabel="latency, ms", ylim=(0, None))
    figure.savefig(path, dpi=110)


def draw_capacity(runs: Sequence[Requests], title: str, path: Path) -> None:
    """Draw latency, and refused requests, over the rate of arrivals."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    latency: Any = figure.subplots()
    sent = [len(run.due_s) / run.seconds for run in runs]
    for part in (50, 99):
        values = [run.percentile(part) for run in runs]
        latency.plot(sent, values, "o-", label=f"p{part}")
    latency.set(title=title, xlabel="requests/s sent", ylabel="latency of answers, ms", yscale="log")
    latency.grid(alpha=0.3, which="both")
    latency.legend(loc="upper left")
    answered = latency.twinx()
    answered.plot(sent, [run.answered.sum() / run.seconds for run in runs], "s--", color="tab:green")
    answered.set_ylabel("requests/s answered", color="tab:green")
    answered.set_ylim(0, None)
    figure.savefig(path, dpi=110)
