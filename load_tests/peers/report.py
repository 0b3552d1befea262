"""The table and the plot of a comparison."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt


def write(rows: Sequence[dict[str, Any]], folder: Path) -> str:
    """Write table.md and peers.png into `folder`, and return the table, with ratios to the best other."""
    lines = ["| | server | requests/s | to the best other | p50 ms | p99 ms |", "|---|---|---|---|---|---|"]
    for row in rows:
        best = best_other(rows, "no model" if row["table"] == "no model" else "default precision")
        # Round by round, since a machine that others use is not the same from one to the next.
        ratios = [run["rate"] / of for run, of in zip(row["runs"], best, strict=True)] if best else []
        ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
        lines.append(
            f"| {row['table']} | {row['server']} | {row['rate']:.1f} | {ratio} | {row['p50_ms']:.1f} "
            f"| {row['p99_ms']:.1f} |"
        )
    table = "\n".join(lines) + "\n"
    (folder / "table.md").write_text(table)
    _draw(rows, folder / "peers.png")
    return table


def best_other(rows: Sequence[dict[str, Any]], table: str) -> list[float]:
    """Return each round's requests/s of the best server that is not this one; [] where there is none."""
    others = [row for row in rows if row["table"] == table and row["server"] != "this service"]
    best = max(others, key=lambda row: row["rate"], default=None)
    return [] if best is None else [run["rate"] for run in best["runs"]]


def _draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    mpl.use("agg")
    tables = list(dict.fromkeys(row["table"] for row in rows))
    figure, axes = plt.subplots(1, len(tables), figsize=(4.5 * len(tables), 3.2), layout="constrained")
    for axis, table in zip(axes if len(tables) > 1 else [axes], tables, strict=True):
        some = sorted((row for row in rows if row["table"] == table), key=lambda row: row["rate"])
        colours = ["tab:blue" if row["server"] == "this service" else "tab:gray" for row in some]
        bars = axis.barh([row["server"] for row in some], [row["rate"] for row in some], color=colours)
        axis.bar_label(bars, fmt="%.0f", padding=3)
        axis.margins(x=0.15)
        axis.set(title=table, xlabel="requests/s")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
