"""Plots of throughput by batch size and of accuracy by latency, as PNG files.

Needs matplotlib, an extra of the package: call `resnet_service.training.require_plots` before importing it.
"""

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from resnet_service import figures
from resnet_service.benchmark.comparison import ModelComparison
from resnet_service.benchmark.results import BenchmarkRun, ModelRow

_MIN_ACCURACY_MARGIN: Final = 0.02
"""Space above and below the points, so that equal models are not at the edge of the axes."""


@figures.STYLE
def over_batch_sizes(runs: Sequence[BenchmarkRun], model: str, path: Path) -> Figure:
    """Plot a model's images/s and batch latency, with a line for each machine and variant."""
    curves = list(_curves(runs, model))
    figure = Figure(figsize=(11, 4.5 + 0.2 * len(curves)), layout="constrained")
    figure.suptitle(figures.wrap(model, 100))
    rates, latencies = figure.subplots(1, 2)
    for (name, rows), marker in zip(curves, cycle(figures.MARKERS), strict=False):
        sizes = [row.batch_size for row in rows]
        rates.plot(sizes, [row.images_per_second for row in rows], marker=marker, label=name)
        latencies.plot(sizes, [row.p50_ms for row in rows], marker=marker)
    measured = sorted({row.batch_size for _, rows in curves for row in rows})
    for axes, quantity in ((rates, "images/s"), (latencies, "latency of a batch, p50, ms")):
        axes.set(xlabel="batch size, images", ylabel=quantity, xscale="log")
        axes.set_xlim(measured[0] / 1.2, measured[-1] * 1.2)
        axes.set_ylim(bottom=0)
        axes.set_xticks(_ticks(measured))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:.0f}")
    figure.legend(loc="outside lower center", fontsize="small")
    return figures.save(figure, path)


@figures.STYLE
def accuracy_over_latency(rows: Sequence[ModelComparison], path: Path) -> Figure:
    """Plot each model as a point; the legend contains its variant and its number of parameters.

    The vertical axis is accuracy if all models have one, otherwise agreement with the first model.
    """
    figure = Figure(figsize=(9, max(4.5, 0.5 * len(rows))), layout="constrained")
    axes = figure.subplots()
    accuracies = [row.accuracy for row in rows if row.accuracy is not None]
    has_accuracy = len(accuracies) == len(rows)
    shares = accuracies if has_accuracy else [row.agreement for row in rows]
    for row, share, marker in zip(rows, shares, cycle(figures.MARKERS), strict=False):
        axes.plot(row.latency_ms, share, marker, markersize=9, alpha=0.8, label=_label(row))
    axes.set(
        xlabel="latency of one image, p50, ms",
        ylabel="accuracy" if has_accuracy else f"agreement with {figures.wrap(rows[0].model, 40)}",
    )
    # Points at 0 ms or 100 % are inside the axes, but there are no ticks beyond these values.
    slowest_ms = max(row.latency_ms for row in rows)
    axes.set_xlim(-0.05 * slowest_ms, 1.1 * slowest_ms)
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= 1.1 * slowest_ms])
    margin = max(_MIN_ACCURACY_MARGIN, 0.1 * (max(shares) - min(shares)))
    low, high = min(shares) - margin, max(shares) + margin
    axes.set_ylim(low, high)
    axes.set_yticks([tick for tick in axes.get_yticks() if max(low, 0) <= tick <= min(high, 1)])
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    figures.legend_beside(axes)
    return figures.save(figure, path)


def _label(row: ModelComparison) -> str:
    parameters = "quantized" if row.parameters is None else f"{row.parameters / 1e6:.1f} M parameters"
    return figures.wrap(f"{row.model}\n{row.variant}, {parameters}", 45)


def _ticks(sizes: Sequence[int]) -> list[int]:
    """Return the sizes at which a logarithmic axis has room for a label, from the smallest on."""
    factor = (sizes[-1] / sizes[0]) ** (1 / 12)
    ticks = [sizes[0]]
    for size in sizes[1:]:
        if size >= factor * ticks[-1]:
            ticks.append(size)
    return ticks


def _curves(runs: Sequence[BenchmarkRun], model: str) -> Iterator[tuple[str, list[ModelRow]]]:
    for run in runs:
        for variant in dict.fromkeys(row.variant for row in run.model if row.model == model):
            rows = [row for row in run.model if row.model == model and row.variant == variant]
            yield f"{run.machine(variant)}: {variant}", sorted(rows, key=lambda row: row.batch_size)
