"""Plots of scenarios, of the capacity, of an overload and of a soak, as PNG files."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from load_tests.overload import OverloadResult
from load_tests.request_log import BoolArray, FloatArray, RequestLog, percentile
from load_tests.soak import SoakResult
from resnet_service import figures

_MIB: Final = 2**20
_SOAK_BINS: Final = 30


class CapacityPoint(NamedTuple):
    """What was measured at one rate of requests; the latencies are those of the requests that succeeded."""

    sent_rps: float
    succeeded_rps: float
    p50_ms: float
    p99_ms: float

    @classmethod
    def from_log(cls, log: RequestLog) -> "CapacityPoint":
        """Return the point of a run at a constant rate."""
        succeeded = log.has_outcome("succeeded")
        p50_ms, p99_ms = (log.latency(percent, succeeded) * 1e3 for percent in (50, 99))
        return cls(len(log) / log.seconds, log.rate(succeeded), p50_ms, p99_ms)


@figures.STYLE
def draw_timeline(title: str, log: RequestLog, capacity_rps: float, path: Path) -> Figure:
    """Draw the requests that were sent, succeeded and rejected in each second, and the latencies."""
    figure, (rates, latencies) = _panels(title, 2)
    succeeded, rejected = log.has_outcome("succeeded"), log.has_outcome("rejected")
    edges = np.arange(0, np.ceil(log.seconds) + 1)
    for label, times_s, color in (
        ("sent", log.due_s, figures.GRAY),
        ("rejected", log.done_s[rejected], figures.RED),
        ("succeeded", log.done_s[succeeded], figures.GREEN),
    ):
        counts = np.histogram(times_s, edges)[0]
        rates.stairs(counts, edges, baseline=None, label=label, color=color, linewidth=1.6)
    rates.axhline(capacity_rps, color=figures.GREEN, linestyle=":", label="capacity, measured before")
    rates.set(ylabel="requests/s", ylim=(0, None))
    _dots(latencies, log, succeeded, 1e3, "succeeded", figures.GREEN)
    latencies.set(xlabel="second in which the request was due", ylabel="latency, ms", ylim=(0, None))
    return _finish(figure, (rates, latencies), path)


@figures.STYLE
def draw_capacity(points: Sequence[CapacityPoint], title: str, path: Path) -> Figure:
    """Draw the rate of requests that succeed, and the latency, over the rate of requests."""
    figure, (rates, latency) = _panels(title, 2)
    sent_rps = [point.sent_rps for point in points]
    rates.plot(sent_rps, sent_rps, linestyle=":", color=figures.GRAY, label="all requests")
    succeeded_rps = [point.succeeded_rps for point in points]
    # Not clipped, because a point at 0 is half outside the axes.
    rates.plot(sent_rps, succeeded_rps, "s-", color=figures.GREEN, label="succeeded", clip_on=False)
    rates.set(ylabel="requests/s", ylim=(0, None))
    latency.plot(sent_rps, [point.p99_ms for point in points], "^-", color=figures.ORANGE, label="p99")
    latency.plot(sent_rps, [point.p50_ms for point in points], "o-", color=figures.BLUE, label="p50")
    latency.set_xlabel("requests/s sent")
    _set_log_scale(latency, "latency, ms")
    return _finish(figure, (rates, latency), path)


@figures.STYLE
def draw_overload(result: OverloadResult, title: str, path: Path) -> Figure:
    """Draw the rates by status, the latencies, the responses to probes, and the memory."""
    load, light, monitor = result.load, result.light, result.monitor
    figure, (rates, accepted, rejected, memory) = _panels(title, 4)
    last_s = max(load.seconds, *load.done_s, *light.done_s)
    edges = np.arange(0, np.ceil(last_s) + 1)
    for name, times_s, color in (
        ("sent", np.concatenate([load.due_s, light.due_s]), figures.GRAY),
        ("rejected (429)", load.done_s[load.has_status(429)], figures.RED),
        (
            "succeeded (200)",
            np.concatenate([log.done_s[log.has_status(200)] for log in (load, light)]),
            figures.GREEN,
        ),
    ):
        counts = np.histogram(times_s, edges)[0].astype(float)
        rates.stairs(np.where(counts > 0, counts, np.nan), edges, label=name, color=color, linewidth=1.6)
    rates.axhline(result.capacity_rps, color=figures.GREEN, linestyle=":", label="capacity, measured before")
    _set_log_scale(rates, "requests/s")

    for name, log, color in (
        ("200, overload", load, figures.BLUE),
        ("200, light load after", light, figures.ORANGE),
    ):
        _dots(accepted, log, log.has_status(200), 1.0, name, color)
    accepted.axhline(result.deadline_s, color=figures.GRAY, linestyle="--", label="deadline")
    _set_log_scale(accepted, "latency, s")

    _dots(rejected, load, load.has_status(429), 1e3, "429", figures.RED)
    for (name, log), color in zip(monitor.probes.items(), (figures.BLUE, figures.ORANGE), strict=True):
        _dots(rejected, log, log.has_status(200), 1e3, name, color, size=5)
    rejected.axhline(50, color=figures.RED, linestyle=":", label="limit of a 429")
    rejected.axhline(100, color=figures.GRAY, linestyle="--", label="limit of a probe")
    _set_log_scale(rejected, "latency, ms")

    _line(memory, monitor.at_s, monitor.rss_bytes / _MIB, "resident memory")
    memory.axvline(result.settled_s, color=figures.GRAY, linestyle=":", label="settled: judged from here on")
    _set_range_around(memory, monitor.rss_bytes / _MIB)
    memory.set(ylabel="memory, MiB", xlabel="seconds since the overload began")
    memory.set_xlim(-0.01 * last_s, 1.01 * last_s)
    return _finish(figure, (rates, accepted, rejected, memory), path, shaded_s=load.seconds)


@figures.STYLE
def draw_soak(result: SoakResult, title: str, path: Path) -> Figure:
    """Draw memory, threads, open files, and the latency of typical images, over minutes."""
    load, monitor = result.load, result.monitor
    figure, (memory, threads, open_files, latency) = _panels(title, 4)
    minutes = monitor.at_s / 60
    rss_mib = monitor.rss_bytes / _MIB
    _line(memory, minutes, rss_mib, "resident memory")
    plateau_mib = result.plateau_bytes / _MIB
    if np.isfinite(plateau_mib):
        label = f"plateau: {plateau_mib:,.0f} MiB"
        memory.axhline(plateau_mib, color=figures.RED, linestyle="--", label=label)
    if np.isfinite(result.plateau_at_s):
        label = f"within 2 % of it\nafter {result.plateau_at_s / 60:.1f} min"
        memory.axvline(result.plateau_at_s / 60, color=figures.GRAY, linestyle=":", label=label)
    _set_range_around(memory, rss_mib)
    memory.set(ylabel="memory, MiB")
    for panel, name, values in (
        (threads, "threads", monitor.threads),
        (open_files, "open files", monitor.open_files),
    ):
        _line(panel, minutes, values, name)
        panel.set(ylabel=name, ylim=(0, 1.25 * values.max()))

    edges = np.linspace(0, load.seconds, _SOAK_BINS + 1)
    typical = load.has_status(200) & load.has_kind("typical")
    centers = (edges[:-1] + edges[1:]) / 120
    for percent, color in ((50, figures.BLUE), (99, figures.ORANGE)):
        points = [
            percentile(load.latency_s[typical & (load.due_s >= start) & (load.due_s < end)], percent) * 1e3
            for start, end in pairwise(edges)
        ]
        latency.plot(centers, points, "o-", markersize=3, color=color, label=f"p{percent}, typical images")
    _set_log_scale(latency, "latency, ms")
    latency.set(xlabel="minutes since the start", xlim=(-0.01 * load.seconds / 60, 1.01 * load.seconds / 60))
    return _finish(figure, (memory, threads, open_files, latency), path)


def _panels(title: str, count: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(10, 2.1 * count + 0.8), layout="constrained")
    figure.suptitle(figures.wrap(title, 100))
    return figure, figure.subplots(count, sharex=True)


def _line(panel: Any, times: FloatArray, values: FloatArray, name: str) -> None:
    """Plot samples of the process as steps, and a single one as a point."""
    marker = "o" if len(values) == 1 else ""
    panel.plot(times, values, marker, color=figures.BLUE, linewidth=1, drawstyle="steps-post", label=name)


def _dots(
    panel: Any, log: RequestLog, mask: BoolArray, unit: float, name: str, color: str, size: float = 2.5
) -> None:
    """Plot when requests were due, and their latency in units of 1/`unit` seconds."""
    panel.plot(log.due_s[mask], log.latency_s[mask] * unit, ".", markersize=size, color=color)
    panel.plot([], [], "o", color=color, label=name)  # a larger dot in the legend


def _set_log_scale(panel: Any, label: str) -> None:
    """Show whole decades, so that at least two ticks have labels."""
    panel.set(ylabel=label, yscale="log")
    low, high = np.log10(panel.get_ylim())
    panel.set_ylim(10 ** np.floor(low), 10 ** np.ceil(high))
    panel.yaxis.set_major_formatter("{x:g}")  # 100 instead of a power of ten
    panel.yaxis.set_minor_formatter("")


def _set_range_around(panel: Any, values: FloatArray) -> None:
    """Show a range of at least a tenth of the value, so that a flat line looks flat."""
    middle = (values.max() + values.min()) / 2
    half = max(0.05 * middle, 0.65 * (values.max() - values.min()))
    panel.set_ylim(middle - half, middle + half)


def _finish(figure: Figure, panels: Any, path: Path, shaded_s: float | None = None) -> Figure:
    for panel in panels:
        if shaded_s is not None:
            panel.axvspan(0, shaded_s, color="0.95", zorder=0)
        figures.legend_beside(panel)
    return figures.save(figure, path)
