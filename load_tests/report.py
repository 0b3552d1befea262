"""Results as text: tables of checks and of scenarios, missed targets, and a CSV line per request."""

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from load_tests.request_log import RequestLog, percentile

CSV_COLUMNS: Final = (
    "due_s",
    "late_ms",
    "kind",
    "outcome",
    "latency_ms",
    "decode_ms",
    "queue_ms",
    "device_ms",
)
"""Columns of a run's CSV: when the request was due, how much later it was sent, and what became of it.

The latency counts from when the request was due; the last three columns come from Server-Timing.
"""

_STAGES: Final = ("decode", "queue", "device")
_SCENARIO_COLUMNS: Final = (
    "scenario",
    "sent/s",
    "succeeded/s",
    "rejected",
    "failed",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    *(f"{stage} p99 ms" for stage in _STAGES),
    "sent late, p99 ms",
)


class Check(NamedTuple):
    """A guarantee of the service, the measured value, and whether it was met."""

    guarantee: str
    measured: str
    passed: bool


def checks_table(checks: Iterable[Check], measurements: Iterable[tuple[str, str]] = ()) -> str:
    """Return checks, and (name, value) of further measurements, as Markdown tables."""
    lines = ["| guarantee | measured | |", "|---|---|---|"]
    lines += [
        f"| {check.guarantee} | {check.measured} | {'passed' if check.passed else '**failed**'} |"
        for check in checks
    ]
    rows = [f"| {name} | {value} |" for name, value in measurements]
    if rows:
        lines += ["", "| measurement | |", "|---|---|", *rows]
    return "\n".join(lines)


def scenario_table(logs: Mapping[str, RequestLog]) -> str:
    """Return the runs, by scenario, as a Markdown table."""
    columns = list(_SCENARIO_COLUMNS)
    rows = [columns, ["---"] * len(columns), *(scenario_row(name, log) for name, log in logs.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(columns))]
    lines = (" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"| {line} |" for line in lines)


def scenario_row(name: str, log: RequestLog) -> list[str]:
    """Return the cells of a run in the table of scenarios."""
    succeeded = log.has_outcome("succeeded")
    stages_s = (log.decode_s, log.queue_s, log.device_s)
    return [
        name,
        f"{len(log) / log.seconds:.0f}",
        f"{log.rate(succeeded):.0f}",
        f"{log.has_outcome('rejected').mean():.1%}" if len(log) else "-",
        str(log.has_outcome("failed").sum()),
        *(f"{log.latency(percent, succeeded) * 1e3:.0f}" for percent in (50, 95, 99)),
        *(f"{percentile(stage_s[succeeded], 99) * 1e3:.0f}" for stage_s in stages_s),
        f"{percentile(log.late_s, 99) * 1e3:.0f}",
    ]


def missed_targets(name: str, log: RequestLog, p99_ms: float, may_reject: bool) -> list[str]:
    """Return the targets that a run of the scenario `name` missed.

    The targets are: no failed request; no rejected request unless `may_reject`; the p99 of the requests that
    succeeded.
    """
    missed = []
    if failed := int(log.has_outcome("failed").sum()):
        missed.append(f"{name}: {failed} of {len(log)} requests failed")
    if not may_reject and (rejected := int(log.has_outcome("rejected").sum())):
        missed.append(f"{name}: {rejected} of {len(log)} requests were rejected")
    measured_ms = log.latency(99, log.has_outcome("succeeded")) * 1e3
    if not measured_ms <= p99_ms:  # nan, if no request succeeded, misses it too
        missed.append(f"{name}: p99 is {measured_ms:.0f} ms, over {p99_ms:.0f} ms")
    return missed


def write_csv(log: RequestLog, path: Path) -> None:
    """Write a line per request, with CSV_COLUMNS; a value that does not exist is empty."""
    times_ms = (log.late_s, log.latency_s, log.decode_s, log.queue_s, log.device_s)
    late, latency, *stages = ([_format_ms(seconds) for seconds in column] for column in times_ms)
    due = [f"{second:.4f}" for second in log.due_s]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        writer.writerows(zip(due, late, log.kind, log.outcome, latency, *stages, strict=True))


def _format_ms(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{seconds * 1e3:.3f}"
