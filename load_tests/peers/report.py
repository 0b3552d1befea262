"""The table and the plot of a comparison."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from load_tests.peers.competitors import THIS_SERVICE


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
        best = _best_other(rows, row["table"]) or _best_other(rows, "default precision")
        # Per round, because the speed of a shared machine changes between rounds.
        ratios = [run["rate"] / rate for run, rate in zip(row["runs"], best, strict=True)] if best else []
        ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
        lines.append(
            f"| {row['table']} | {row['server']} | {row['rate']:.1f} | {ratio} | {row['p50_ms']:.1f} "
            f"| {row['p99_ms']:.1f} |"
        )
    table = "\n".join(lines) + "\n"
    (folder / "table.md").write_text(table, encoding="utf-8")
    _draw(rows, folder / "peers.png")
    return table


def _best_other(rows: Sequence[dict[str, Any]], table: str) -> list[float]:
    """Return the requests/s in each round of the best other server in a table; [] without other servers."""
    others = [row for row in rows if row["table"] == table and row["server"] != THIS_SERVICE]
    best = max(others, key=lambda row: row["rate"], default=None)
    return [] if best is None else [run["rate"] for run in best["runs"]]


def _draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    mpl.use("agg")
    rates_by_panel: dict[str, dict[str, float]] = {}
    for row in rows:
        panel, name = row["table"], row["server"]
        if panel == "int8":  # in the same panel as the other servers, which have no int8
            panel, name = "default precision", f"{name}, int8"
        rates_by_panel.setdefault(panel, {})[name] = row["rate"]
    count = len(rates_by_panel)
    columns = min(2, count)
    lines = -(-count // columns)
    size = (5.5 * columns, 3.2 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[count:]:
        axis.remove()
    for axis, (panel, rates) in zip(axes.flat, rates_by_panel.items(), strict=False):
        names = sorted(rates, key=rates.__getitem__)
        colors = ["tab:blue" if name.startswith(THIS_SERVICE) else "tab:gray" for name in names]
        bars = axis.barh(names, [rates[name] for name in names], color=colors)
        axis.bar_label(bars, fmt="%.0f", padding=3)
        axis.margins(x=0.15)
        axis.set(title=panel, xlabel="requests/s")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
