"""A simulated incident: the model becomes slow under load, and the dashboards have to show it.

A Prometheus scrapes the service; afterwards each panel of both dashboards is drawn from its data.
"""

import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, PercentFormatter

from monitoring.panels import BATCH_SIZES, DASHBOARDS, Panel, Series

_STEP_S: Final = 2
_RATE_INTERVAL: Final = "20s"
_COLUMNS: Final = 3


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


def draw_dashboards(prometheus: str, span: Slowdown, folder: Path) -> list[Path]:
    """Draw the panels of each dashboard over the incident, and return the paths of the plots."""
    paths = []
    with httpx.Client(base_url=prometheus, timeout=30) as client:
        for name, (title, rows) in DASHBOARDS.items():
            panels = [panel for panels in rows.values() for panel in panels]
            rows_of_panels = math.ceil((len(panels) + 1) / _COLUMNS)
            figure = Figure(figsize=(5.2 * _COLUMNS, 2.9 * rows_of_panels), layout="constrained")
            figure.suptitle(f"{title}; the model is slow in the gray area")
            axes: Sequence[Axes] = figure.subplots(rows_of_panels, _COLUMNS, sharex=True).flat
            for panel, panel_axes in zip(panels, axes, strict=False):
                _draw_panel(client, panel, span, panel_axes)
            for unused_axes in axes[len(panels) :]:
                unused_axes.set_axis_off()
            if name == "detail":
                _draw_batch_sizes(client, span, axes[len(panels)])
            path = folder / f"incident-{name}.png"
            figure.savefig(path, dpi=80)
            paths.append(path)
    return paths


def _draw_panel(client: httpx.Client, panel: Panel, span: Slowdown, axes: Axes) -> None:
    axes.axvspan(span.start - span.shown_from, span.end - span.shown_from, color="0.9")
    for series in panel.series:
        for legend, seconds, values in _query(client, series, span):
            axes.plot(seconds, values, label=legend, linewidth=1.3)
    if panel.limit is not None:
        axes.axhline(panel.limit, color="tab:red", linestyle="--", linewidth=0.8)
    axes.set_title(panel.title, fontsize=10)
    axes.set_ylim(0, panel.top and panel.top * 1.05)
    axes.tick_params(labelsize=8)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=6, loc="upper left")
    match panel.unit:
        case "percentunit":
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        case "s":
            axes.yaxis.set_major_formatter(EngFormatter("s"))
        case "bytes":
            axes.yaxis.set_major_formatter(EngFormatter("B"))
        case "reqps" | "ops":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}/s"))


def _draw_batch_sizes(client: httpx.Client, span: Slowdown, axes: Axes) -> None:
    """Draw a heatmap of batches/s by size: the difference between one bucket and the one below."""
    buckets = sorted(_query(client, BATCH_SIZES, span), key=lambda bucket: float(bucket[0]))
    axes.set_axis_on()
    axes.set_title("Batch sizes", fontsize=10)
    if not buckets:
        return  # the run was too short for a rate
    seconds = buckets[0][1]
    rates = np.diff([values for _, _, values in buckets], axis=0, prepend=0)
    axes.imshow(rates, aspect="auto", origin="lower", extent=(seconds[0], seconds[-1], 0, len(rates)))
    axes.set_yticks(np.arange(len(rates)) + 0.5, [size for size, _, _ in buckets], fontsize=6)
    axes.set_xlim(0, span.shown_to - span.shown_from)


def _query(
    client: httpx.Client, series: Series, span: Slowdown
) -> list[tuple[str, list[float], list[float]]]:
    """Return (legend, seconds since `span.shown_from`, values) of each series of a query."""
    expression = series.expr.replace("$__rate_interval", _RATE_INTERVAL).replace("$instance", ".*")
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
