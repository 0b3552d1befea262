"""A simulated incident: the model becomes slow under load, and the dashboards have to show it.

A Prometheus scrapes the service; afterwards each panel of both dashboards is drawn from its data.
"""

import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, PercentFormatter, StrMethodFormatter

from monitoring.panels import BATCH_SIZES, DASHBOARDS, Panel, Series, fill_in
from resnet_service import figures

_STEP_S: Final = 2
_RATE_INTERVAL: Final = "20s"
_COLUMNS: Final = 3
_UNITS: Final[dict[str, tuple[str, Callable[[], Formatter], float]]] = {
    "percentunit": ("share", lambda: PercentFormatter(1), 1.0),
    "s": ("time", lambda: EngFormatter("s"), 1.0),
    "bytes": ("memory", lambda: StrMethodFormatter("{x:,g} MiB"), 1.0),
    "reqps": ("requests", lambda: StrMethodFormatter("{x:g}/s"), 1.0),
    "ops": ("rate", lambda: StrMethodFormatter("{x:g}/s"), 1.0),
    "short": ("number", lambda: StrMethodFormatter("{x:,g}"), 1.0),
    "bool_yes_no": ("1: yes, 0: no", lambda: StrMethodFormatter("{x:g}"), 1.0),
}
"""Grafana's unit -> label and format of the vertical axis, and its range if all values are 0."""

QueryFn = Callable[[Series], list[tuple[str, list[float], list[float]]]]
"""Returns (legend, seconds since the load began, values) of each line of a series."""


class Slowdown(NamedTuple):
    """When the model is slow (`start` to `end`), and the time that plots show; in seconds since the epoch."""

    shown_from: float
    start: float
    end: float
    shown_to: float


def slow_server_command(model: str, factor: float) -> list[str]:
    """Return the command of a service whose batches take `factor` times as long while slow."""
    return [sys.executable, "-m", "load_tests.slow_server", model, str(factor)]


def schedule_slowdown(
    process: "subprocess.Popen[bytes]", before: float, during: float, after: float
) -> Slowdown:
    """Schedule the slowdown of a `load_tests.slow_server` and its end; the arguments are in seconds."""
    for seconds in (before, before + during):
        timer = threading.Timer(seconds, process.send_signal, [signal.SIGUSR1])
        timer.daemon = True
        timer.start()
    now = time.time()
    return Slowdown(now, now + before, now + before + during, now + before + during + after)


def draw_dashboards(prometheus: str, service: str, span: Slowdown, folder: Path) -> list[Path]:
    """Draw the panels of each dashboard over the incident of a service, and return the paths of the plots."""
    paths = []
    with httpx.Client(base_url=prometheus, timeout=30) as client:
        for name in DASHBOARDS:
            paths.append(folder / f"incident-{name}.png")
            draw_dashboard(name, service, span, partial(_query, client, span), paths[-1])
    return paths


@figures.STYLE
def draw_dashboard(name: str, service: str, span: Slowdown, query: QueryFn, path: Path) -> Figure:
    """Draw the panels of one dashboard, and of `detail` also the heatmap, from the results of queries."""
    title, rows = DASHBOARDS[name]
    panels = [panel for panels in rows.values() for panel in panels]
    count = len(panels) + (name == "detail")
    lines = math.ceil(count / _COLUMNS)
    figure = Figure(figsize=(6.4 * _COLUMNS, 2.6 * lines), layout="constrained")
    figure.suptitle(f"{title}; the model is slow in the gray area\n{figures.wrap(service, 150)}")
    axes: Sequence[Axes] = figure.subplots(lines, _COLUMNS, sharex=True).flat
    for panel, panel_axes in zip(panels, axes, strict=False):
        _draw_panel(panel, span, query, panel_axes)
    if name == "detail":
        _draw_batch_sizes(query, figure, axes[len(panels)])
    axes[0].set_xlim(0, span.shown_to - span.shown_from)
    for panel_axes in axes[max(0, count - _COLUMNS) : count]:
        panel_axes.tick_params(labelbottom=True)
        panel_axes.set_xlabel("seconds since the load began")
    for unused_axes in axes[count:]:
        unused_axes.remove()
    return figures.save(figure, path)


def _draw_panel(panel: Panel, span: Slowdown, query: QueryFn, axes: Axes) -> None:
    axes.axvspan(span.start - span.shown_from, span.end - span.shown_from, color="0.9")
    divisor = 2**20 if panel.unit == "bytes" else 1
    highest = panel.limit or 0.0
    for series in panel.series:
        for legend, seconds, raw_values in query(series):
            values = [value / divisor for value in raw_values]
            is_point = len(values) == 1
            (line,) = axes.plot(seconds, values, label=figures.wrap(legend, 24), clip_on=not is_point)
            line.set_marker("o" if is_point else "")
            highest = max(highest, *(value for value in values if math.isfinite(value)), 0.0)
    if panel.limit is not None:
        axes.axhline(panel.limit, color=figures.RED, linestyle="--", linewidth=0.8, label="limit")
    label, formatter_type, empty_range = _UNITS[panel.unit]
    axes.set(title=panel.title, ylabel=label, ylim=(0, 1.1 * (panel.top or highest or empty_range)))
    axes.yaxis.set_major_formatter(formatter_type())
    if axes.get_legend_handles_labels()[1]:
        figures.legend_beside(axes)


def _draw_batch_sizes(query: QueryFn, figure: Figure, axes: Axes) -> None:
    """Draw a heatmap of batches/s by size: the difference between one bucket and the one below."""
    buckets = sorted(query(BATCH_SIZES), key=lambda bucket: float(bucket[0]))
    axes.set(title="Batch sizes", ylabel="images, at most")
    if not buckets or len(buckets[0][1]) < 2:
        return  # the run was too short for a rate
    seconds = buckets[0][1]
    rates = np.diff([values for _, _, values in buckets], axis=0, prepend=0)
    image = axes.imshow(
        rates, aspect="auto", origin="lower", extent=(seconds[0], seconds[-1], 0, len(rates)), vmin=0
    )
    axes.set_yticks(np.arange(len(rates)) + 0.5, [f"{float(size):g}" for size, _, _ in buckets], size=8)
    axes.grid(visible=False)
    figure.colorbar(image, label="batches/s")


def _query(
    client: httpx.Client, span: Slowdown, series: Series
) -> list[tuple[str, list[float], list[float]]]:
    """Return (legend, seconds since `span.shown_from`, values) of each series of a query."""
    expression = fill_in(series.expr, _RATE_INTERVAL)
    response = client.get(
        "/api/v1/query_range",
        params={"query": expression, "start": span.shown_from, "end": span.shown_to, "step": _STEP_S},
    )
    results: list[dict[str, Any]] = response.raise_for_status().json()["data"]["result"]
    series_data = []
    for result in results:
        legend = series.legend
        for label, value in result["metric"].items():
            legend = legend.replace(f"{{{{{label}}}}}", value)
        seconds = [float(at) - span.shown_from for at, _ in result["values"]]
        series_data.append((legend, seconds, [float(value) for _, value in result["values"]]))
    return series_data
