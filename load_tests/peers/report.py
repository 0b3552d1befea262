"""The table and the plot of a comparison."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure

from load_tests.peers.competitors import THIS_SERVICE
from resnet_service import figures

_DEFAULT: Final = "default precision"
_INT8: Final = "int8"


def write_report(rows: Sequence[dict[str, Any]], folder: Path) -> str:
    """Write table.md and peers.png into `folder`, and return the table.

    A row has `table`, `server`, `runs` (a dictionary with `rate` per round) and the medians `rate`, `p50_ms`
    and `p99_ms`. The table contains the ratio of each rate to the best of the other servers.
    """
    lines = [
        "| | server | requests/s | ratio to the best other | p50 ms | p99 ms |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        best = _best_other(rows, row["table"]) or _best_other(rows, _DEFAULT)
        # Per round, because the speed of a shared machine changes between rounds.
        # A server that classified nothing in a round has no ratio.
        rounds = zip(row["runs"], best, strict=True) if best else ()
        ratios = [run["rate"] / rate for run, rate in rounds if rate]
        ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
        lines.append(
            f"| {row['table']} | {row['server']} | {row['rate']:.1f} | {ratio} | {row['p50_ms']:.1f} "
            f"| {row['p99_ms']:.1f} |"
        )
    table = "\n".join(lines) + "\n"
    (folder / "table.md").write_text(table, encoding="utf-8")
    draw(rows, folder / "peers.png")
    return table


def _best_other(rows: Sequence[dict[str, Any]], table: str) -> list[float]:
    """Return the requests/s in each round of the best other server in a table; [] without other servers."""
    others = [row for row in rows if row["table"] == table and row["server"] != THIS_SERVICE]
    best = max(others, key=lambda row: row["rate"], default=None)
    return [] if best is None else [run["rate"] for run in best["runs"]]


@figures.STYLE
def draw(rows: Sequence[dict[str, Any]], path: Path) -> Figure:
    """Draw the rates of each table in a panel, the fastest server on top.

    int8 is in the panel of the default precision, where the other servers are, which have no int8.
    """
    tables = list(dict.fromkeys(row["table"] for row in rows))
    panels: list[tuple[str, ...]] = [(table,) for table in tables]
    if {_DEFAULT, _INT8} <= set(tables):
        panels = [(_DEFAULT, _INT8), *(panel for panel in panels if not {_DEFAULT, _INT8} & set(panel))]
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(6 * columns, 3.4 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for panel, panel_axes in zip(panels, axes, strict=False):
        bars = sorted((row["rate"], *_name_and_color(row)) for row in rows if row["table"] in panel)
        rates, names, colors = zip(*bars, strict=True)
        labels = [f"{rate:,.0f}" if max(rates) >= 100 else f"{rate:.1f}" for rate in rates]
        panel_axes.bar_label(panel_axes.barh(names, rates, color=colors), labels, padding=3)
        panel_axes.set(title=" and ".join(panel), xlabel="requests/s")
        panel_axes.set_xlim(0, 1.2 * max(*rates, 1))  # space for the labels
        panel_axes.grid(visible=False, axis="y")
    for panel_axes in axes[len(panels) :]:
        panel_axes.remove()
    return figures.save(figure, path)


def _name_and_color(row: dict[str, Any]) -> tuple[str, str]:
    if row["server"] != THIS_SERVICE:
        return row["server"], figures.GRAY
    return (
        (f"{THIS_SERVICE}, int8", figures.LIGHT_BLUE)
        if row["table"] == _INT8
        else (THIS_SERVICE, figures.BLUE)
    )
