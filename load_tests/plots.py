"""Plots of scenarios, of the capacity, of an overload and of a soak, as PNG files."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure

from load_tests.overload import OverloadResult
from load_tests.request_log import BoolArray, FloatArray, RequestLog, percentile
from load_tests.soak import SoakResult

_BLUE: Final = "tab:blue"
_GREEN: Final = "tab:green"
_ORANGE: Final = "tab:orange"
_RED: Final = "tab:red"
_GRAY: Final = "0.5"
_MIB: Final = 2**20
_SOAK_BINS: Final = 30


def draw_timeline(name: str, log: RequestLog, capacity_rps: float, path: Path) -> None:
    """Draw the requests that were sent, succeeded and rejected in each second, and the latencies."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    rates, latencies = figure.subplots(2, sharex=True)
    succeeded, rejected = log.has_outcome("succeeded"), log.has_outcome("rejected")
    edges = np.arange(0, log.seconds + 1)
    for label, times_s in (
        ("sent", log.due_s),
        ("succeeded", log.done_s[succeeded]),
        ("rejected", log.done_s[rejected]),
    ):
        rates.stairs(np.histogram(times_s, edges)[0], edges, label=label, linewidth=1.5)
    rates.axhline(capacity_rps, color="gray", linestyle="--", linewidth=1, label="capacity")
    rates.set(title=name, ylabel="requests/s")
    rates.legend(loc="upper right")
    latencies.plot(log.due_s[succeeded], log.latency_s[succeeded] * 1e3, ".", markersize=2)
    latencies.set(xlabel="second in which the request was due", ylabel="latency, ms", ylim=(0, None))
    figure.savefig(path, dpi=110)


def draw_capacity(logs: Sequence[RequestLog], title: str, path: Path) -> None:
    """Draw latency, and the rate of requests that succeed, over the rate of requests."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    latency: Any = figure.subplots()
    sent_rps = [len(log) / log.seconds for log in logs]
    masks = [log.has_outcome("succeeded") for log in logs]
    for percent in (50, 99):
        values_ms = [log.latency(percent, mask) * 1e3 for log, mask in zip(logs, masks, strict=True)]
        latency.plot(sent_rps, values_ms, "o-", label=f"p{percent}")
    latency.set(title=title, xlabel="requests/s sent", ylabel="latency, ms", yscale="log")
    latency.grid(alpha=0.3, which="both")
    latency.legend(loc="upper left")
    succeeded = latency.twinx()
    rates = [log.rate(mask) for log, mask in zip(logs, masks, strict=True)]
    succeeded.plot(sent_rps, rates, "s--", color=_GREEN)
    succeeded.set_ylabel("successful requests/s", color=_GREEN)
    succeeded.set_ylim(0, None)
    figure.savefig(path, dpi=110)


def draw_overload(result: OverloadResult, title: str, path: Path) -> None:
    """Draw the rates by status, the latencies, the responses to probes, and the memory."""
    load, light, monitor = result.load, result.light, result.monitor
    figure, (rates, accepted, rejected, memory) = _panels(title, 4)
    last_s = max(load.seconds, *load.done_s, *light.done_s)
    edges = np.arange(0, np.ceil(last_s) + 1)
    for name, times_s, color in (
        ("sent", np.concatenate([load.due_s, light.due_s]), _GRAY),
        ("rejected (429)", load.done_s[load.has_status(429)], _RED),
        (
            "succeeded (200)",
            np.concatenate([log.done_s[log.has_status(200)] for log in (load, light)]),
            _GREEN,
        ),
    ):
        counts = np.histogram(times_s, edges)[0].astype(float)
        rates.stairs(np.where(counts > 0, counts, np.nan), edges, label=name, color=color, linewidth=1.6)
    rates.axhline(result.capacity_rps, color=_GREEN, linestyle=":", label="capacity, measured before")
    _set_log_scale(rates, "requests/s")

    for name, log, color in (("200, overload", load, _BLUE), ("200, light load after", light, _ORANGE)):
        _dots(accepted, log, log.has_status(200), 1.0, name, color)
    accepted.axhline(result.deadline_s, color=_GRAY, linestyle="--", label="deadline")
    _set_log_scale(accepted, "latency, s")

    _dots(rejected, load, load.has_status(429), 1e3, "429", _RED)
    for (name, log), color in zip(monitor.probes.items(), (_BLUE, _ORANGE), strict=True):
        _dots(rejected, log, log.has_status(200), 1e3, name, color, size=5)
    rejected.axhline(50, color=_RED, linestyle=":", label="limit of a 429")
    rejected.axhline(100, color=_GRAY, linestyle="--", label="limit of a probe")
    _set_log_scale(rejected, "latency, ms")

    memory.plot(monitor.at_s, monitor.rss_bytes / _MIB, color=_BLUE, label="resident memory")
    memory.axvline(result.settled_s, color=_GRAY, linestyle=":", label="settled: judged from here on")
    _set_range_around(memory, monitor.rss_bytes / _MIB)
    memory.set(ylabel="MiB", xlabel="seconds since the overload began", xlim=(0, last_s))
    _finish(figure, (rates, accepted, rejected, memory), path, shaded_s=load.seconds)


def draw_soak(result: SoakResult, title: str, path: Path) -> None:
    """Draw memory, threads, open files, and the latency of typical images, over minutes."""
    load, monitor = result.load, result.monitor
    figure, (memory, threads, open_files, latency) = _panels(title, 4)
    minutes = monitor.at_s / 60
    rss_mib = monitor.rss_bytes / _MIB
    memory.plot(minutes, rss_mib, color=_BLUE, linewidth=1, label="resident memory")
    settled_at_s, settled = monitor.at_s[result.settled], rss_mib[result.settled]
    if len(settled):
        line = (settled_at_s - np.median(settled_at_s)) * result.slope_mb_per_hour * 1e6 / 3600 / _MIB
        label = f"median slope: {result.slope_mb_per_hour:+.1f} MB/h"
        memory.plot(settled_at_s / 60, np.median(settled) + line, color=_RED, linestyle="--", label=label)
    _set_range_around(memory, rss_mib)
    memory.set(ylabel="MiB")
    for panel, name, values in (
        (threads, "threads", monitor.threads),
        (open_files, "open files", monitor.open_files),
    ):
        panel.plot(minutes, values, color=_BLUE, linewidth=1, drawstyle="steps-post", label=name)
        panel.set(ylabel=name, ylim=(0, 1.25 * values.max()))

    edges = np.linspace(0, load.seconds, _SOAK_BINS + 1)
    typical = load.has_status(200) & load.has_kind("typical")
    centers = (edges[:-1] + edges[1:]) / 120
    for percent, color in ((50, _BLUE), (99, _ORANGE)):
        points = [
            percentile(load.latency_s[typical & (load.due_s >= start) & (load.due_s < end)], percent) * 1e3
            for start, end in pairwise(edges)
        ]
        latency.plot(centers, points, "o-", markersize=3, color=color, label=f"p{percent}, typical images")
    latency.set(ylabel="latency, ms", ylim=(0, None), xlabel="minutes", xlim=(0, load.seconds / 60))
    _finish(figure, (memory, threads, open_files, latency), path)


def _panels(title: str, count: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(10, 2.1 * count + 0.5), layout="constrained")
    figure.suptitle(title)
    return figure, figure.subplots(count, sharex=True)


def _dots(
    panel: Any, log: RequestLog, mask: BoolArray, unit: float, name: str, color: str, size: float = 2.5
) -> None:
    """Plot when requests were due, and their latency in units of 1/`unit` seconds."""
    panel.plot(log.due_s[mask], log.latency_s[mask] * unit, ".", markersize=size, color=color)
    panel.plot([], [], "o", color=color, label=name)  # a larger dot in the legend


def _set_log_scale(panel: Any, label: str) -> None:
    panel.set(ylabel=label, yscale="log")
    panel.yaxis.set_major_formatter("{x:g}")  # 100 instead of a power of ten
    panel.yaxis.set_minor_formatter("")


def _set_range_around(panel: Any, values: FloatArray) -> None:
    """Show a range of at least a tenth of the value, so that a flat line looks flat."""
    middle = (values.max() + values.min()) / 2
    half = max(0.05 * middle, 0.65 * (values.max() - values.min()))
    panel.set_ylim(middle - half, middle + half)


def _finish(figure: Figure, panels: Any, path: Path, shaded_s: float | None = None) -> None:
    for panel in panels:
        if shaded_s is not None:
            panel.axvspan(0, shaded_s, color="0.95", zorder=0)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        # Beside the panel; inside it would cover data.
        panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=110)
