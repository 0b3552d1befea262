"""An overload and a soak over time, as PNG files."""

from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure

from load_tests.overload import Overload
from load_tests.request_log import Chosen, Numbers, Record, percentile
from load_tests.soak import Soak

_BLUE: Final = "tab:blue"
_GREEN: Final = "tab:green"
_ORANGE: Final = "tab:orange"
_RED: Final = "tab:red"
_GRAY: Final = "0.5"
_MIB: Final = 2**20
_BINS: Final = 30


def draw_overload(run: Overload, title: str, path: Path) -> None:
    """Draw what came and what became of it, the latencies, the probes' answers, and the memory."""
    load, light, watched = run.load, run.light, run.watched
    figure, (rates, accepted, quick, memory) = _panels(title, 4)
    last_s = max(load.seconds, *load.done_s, *light.done_s)
    edges = np.arange(0, np.ceil(last_s) + 1)
    for name, moments, color in (
        ("sent", np.concatenate([load.due_s, light.due_s]), _GRAY),
        ("rejected (429)", load.done_s[load.were(429)], _RED),
        ("answered (200)", np.concatenate([part.done_s[part.were(200)] for part in (load, light)]), _GREEN),
    ):
        counts = np.histogram(moments, edges)[0].astype(float)
        rates.stairs(np.where(counts > 0, counts, np.nan), edges, label=name, color=color, linewidth=1.6)
    rates.axhline(run.peak_rps, color=_GREEN, linestyle=":", label="peak, measured before")
    _logarithmic(rates, "requests/s")

    for name, record, color in (("200, overload", load, _BLUE), ("200, light load after", light, _ORANGE)):
        _dots(accepted, record, record.were(200), 1.0, name, color)
    accepted.axhline(run.deadline_s, color=_GRAY, linestyle="--", label="deadline")
    _logarithmic(accepted, "latency, s")

    _dots(quick, load, load.were(429), 1e3, "429", _RED)
    for (name, record), color in zip(watched.answers.items(), (_BLUE, _ORANGE), strict=True):
        _dots(quick, record, record.were(200), 1e3, name, color, size=5)
    quick.axhline(50, color=_RED, linestyle=":", label="limit of a 429")
    quick.axhline(100, color=_GRAY, linestyle="--", label="limit of a probe")
    _logarithmic(quick, "latency, ms")

    memory.plot(watched.at_s, watched.rss_bytes / _MIB, color=_BLUE, label="resident memory")
    memory.axvline(run.settled_s, color=_GRAY, linestyle=":", label="settled: judged from here on")
    _with_room(memory, watched.rss_bytes / _MIB)
    memory.set(ylabel="MiB", xlabel="seconds since the overload began", xlim=(0, last_s))
    _finish(figure, (rates, accepted, quick, memory), path, over_s=load.seconds)


def draw_soak(run: Soak, title: str, path: Path) -> None:
    """Draw memory, threads, open files, and the latency of typical images, over minutes."""
    load, watched = run.load, run.watched
    figure, (memory, threads, files, latency) = _panels(title, 4)
    minutes = watched.at_s / 60
    rss_mib = watched.rss_bytes / _MIB
    memory.plot(minutes, rss_mib, color=_BLUE, linewidth=1, label="resident memory")
    settled_at_s, settled = watched.at_s[run.settled], rss_mib[run.settled]
    if len(settled):
        line = (settled_at_s - np.median(settled_at_s)) * run.slope_mb_per_hour * 1e6 / 3600 / _MIB
        label = f"median slope: {run.slope_mb_per_hour:+.1f} MB/h"
        memory.plot(settled_at_s / 60, np.median(settled) + line, color=_RED, linestyle="--", label=label)
    _with_room(memory, rss_mib)
    memory.set(ylabel="MiB")
    for panel, name, values in ((threads, "threads", watched.threads), (files, "open files", watched.files)):
        panel.plot(minutes, values, color=_BLUE, linewidth=1, drawstyle="steps-post", label=name)
        panel.set(ylabel=name, ylim=(0, 1.25 * values.max()))

    edges = np.linspace(0, load.seconds, _BINS + 1)
    typical = load.were(200) & np.isin(load.kind, "typical")
    centres = (edges[:-1] + edges[1:]) / 120
    for part, color in ((50, _BLUE), (99, _ORANGE)):
        points = [
            percentile(load.latency_s[typical & (load.due_s >= begin) & (load.due_s < end)], part) * 1e3
            for begin, end in pairwise(edges)
        ]
        latency.plot(centres, points, "o-", markersize=3, color=color, label=f"p{part}, typical images")
    latency.set(ylabel="latency, ms", ylim=(0, None), xlabel="minutes", xlim=(0, load.seconds / 60))
    _finish(figure, (memory, threads, files, latency), path)


def _panels(title: str, count: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(10, 2.1 * count + 0.5), layout="constrained")
    figure.suptitle(title)
    return figure, figure.subplots(count, sharex=True)


def _dots(
    panel: Any, record: Record, chosen: Chosen, unit: float, name: str, color: str, size: float = 2.5
) -> None:
    """Plot when requests were due, and their latency in units of 1/`unit` seconds."""
    moments, latencies = record.due_s[chosen], record.latency_s[chosen] * unit
    panel.plot(moments, latencies, ".", markersize=size, color=color)
    panel.plot([], [], "o", color=color, label=name)  # larger in the legend


def _logarithmic(panel: Any, label: str) -> None:
    panel.set(ylabel=label, yscale="log")
    panel.yaxis.set_major_formatter("{x:g}")  # 100 instead of a power of ten
    panel.yaxis.set_minor_formatter("")


def _with_room(panel: Any, values: Numbers) -> None:
    """Scale to at least a tenth of the value, so that a flat line looks flat."""
    middle = (values.max() + values.min()) / 2
    half = max(0.05 * middle, 0.65 * (values.max() - values.min()))
    panel.set_ylim(middle - half, middle + half)


def _finish(figure: Figure, panels: Any, path: Path, over_s: float | None = None) -> None:
    for panel in panels:
        if over_s is not None:
            panel.axvspan(0, over_s, color="0.95", zorder=0)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        # Beside the panel: inside, it would cover what is drawn.
        panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=110)
