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
    bars: dict[str, dict[str, float]] = {}
    for row in rows:
        int8 = row["table"] == "int8"  # beside the others, who have none
        table, name = (
            ("default precision", f"{row['server']}, int8") if int8 else (row["table"], row["server"])
        )
        bars.setdefault(table, {})[name] = row["rate"]
    figure, axes = plt.subplots(
        1, len(bars), figsize=(5.5 * len(bars), 3.2), layout="constrained", squeeze=False
    )
    for axis, (table, rates) in zip(axes[0], bars.items(), strict=True):
        names = sorted(rates, key=rates.__getitem__)
        colors = ["tab:blue" if name.startswith("this service") else "tab:gray" for name in names]
        drawn = axis.barh(names, [rates[name] for name in names], color=colors)
        axis.bar_label(drawn, fmt="%.0f", padding=3)
        axis.margins(x=0.15)
        axis.set(title=table, xlabel="requests/s")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
