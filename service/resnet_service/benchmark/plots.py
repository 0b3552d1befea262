"""Plots of throughput by batch size and of accuracy by latency, as PNG files.

Needs matplotlib, an extra of the package: call `resnet_service.training.require_plots` before importing it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from resnet_service.benchmark.comparison import ModelComparison
from resnet_service.benchmark.results import BenchmarkRun, ModelRow
from resnet_service.files import atomic_write

# Users choose the names of models; a dollar sign in one does not start a formula.
_NO_MATH: Final = mpl.rc_context({"text.parse_math": False})


@_NO_MATH
def over_batch_sizes(runs: Sequence[BenchmarkRun], model: str, path: Path) -> None:
    """Plot a model's images/s and batch latency, with a line for each machine and variant."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    rates, latencies = figure.subplots(1, 2)
    for name, rows in _curves(runs, model):
        sizes = [row.batch_size for row in rows]
        rates.plot(sizes, [row.images_per_second for row in rows], marker="o", label=name)
        latencies.plot(sizes, [row.p50_ms for row in rows], marker="o", label=name)
    for axis, title in ((rates, "images/s"), (latencies, "milliseconds per batch, p50")):
        axis.set(title=f"{model}: {title}", xlabel="batch size")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.set_ylim(bottom=0)
        _style(axis)
    handles, names = rates.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    _save(figure, path)


@_NO_MATH
def accuracy_over_latency(rows: Sequence[ModelComparison], path: Path) -> None:
    """Plot each model as a point whose area is its number of parameters.

    The vertical axis is accuracy if all models have one, otherwise agreement with the first model.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    accuracies = [row.accuracy for row in rows if row.accuracy is not None]
    has_accuracy = len(accuracies) == len(rows)
    shares = accuracies if has_accuracy else [row.agreement for row in rows]
    sizes = [40 + 4 * (row.parameters or 0) / 1e6 for row in rows]
    axis.scatter([row.latency_ms for row in rows], shares, sizes, alpha=0.6)
    for row, share in zip(rows, shares, strict=True):
        axis.annotate(
            Path(row.model).name, (row.latency_ms, share), xytext=(8, 4), textcoords="offset points"
        )
    axis.set(
        xlabel="milliseconds for one image, p50",
        ylabel="accuracy" if has_accuracy else f"agreement with {Path(rows[0].model).name}",
        title="area: number of parameters",
    )
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.set_xlim(left=0)
    axis.margins(0.15)
    _style(axis)
    _save(figure, path)


def _curves(runs: Sequence[BenchmarkRun], model: str) -> Iterator[tuple[str, list[ModelRow]]]:
    for run in runs:
        for variant in dict.fromkeys(row.variant for row in run.model if row.model == model):
            rows = [row for row in run.model if row.model == model and row.variant == variant]
            yield f"{run.machine(variant)}: {variant}", sorted(rows, key=lambda row: row.batch_size)


def _style(axis: Axes) -> None:
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
