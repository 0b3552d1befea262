"""Plots of learning curves, confusion matrices and feature maps, as PNG files.

Needs matplotlib, an extra of the package: call `resnet_service.training.require_plots` before importing it.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor
from torchvision.utils import make_grid

from resnet_service import figures

_MAX_MARKERS: Final = 50
"""Epochs from which on the markers of a line would touch."""
_MAX_LABEL: Final = 30
"""Characters of a class name; more would leave no space for the matrix."""


@figures.STYLE
def learning_curve(log: Mapping[str, Any], path: Path) -> Figure:
    """Plot loss, accuracy and learning rate over the epochs of a run's log, each in axes of its own."""
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    epochs = log["epochs"]
    run = f"{log['network']} on {log['data']}, seed {log['config']['training']['seed']}"
    figure.suptitle(figures.wrap(f"{run}: test accuracy {epochs[-1]['accuracy']:.2%}", 120))
    loss, accuracy, rate = figure.subplots(1, 3)
    numbers = [epoch["number"] for epoch in epochs]
    marker = "o" if len(epochs) <= _MAX_MARKERS else ""
    for axes, key, quantity in (
        (loss, "loss", "training loss"),
        (accuracy, "train_accuracy", "training, augmented"),
        (accuracy, "accuracy", "test"),
        (rate, "learning_rate", "learning rate at the end of the epoch"),
    ):
        axes.plot(numbers, [epoch[key] for epoch in epochs], marker=marker, label=quantity)
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.margins(0.06)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    accuracy.set(ylabel="accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    accuracy.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    return figures.save(figure, path)


@figures.STYLE
def confusion_matrix(counts: Tensor, labels: Sequence[str], path: Path) -> Figure:
    """Plot a confusion matrix [C, C]; the color is the share of the row's class."""
    classes = len(labels)
    names = [label if len(label) <= _MAX_LABEL else f"{label[: _MAX_LABEL - 1]}…" for label in labels]
    side = max(5.0, min(20.0, 3 + 0.45 * classes))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.grid(visible=False)
    axes.set(xlabel="predicted class", ylabel="class", title=f"{int(counts.sum()):,} test images")
    figure.colorbar(image, shrink=0.6, label="share of the class", format=PercentFormatter(1))
    if classes <= 50:
        axes.set_xticks(range(classes), names, rotation=90)
        axes.set_yticks(range(classes), names)
    if classes <= 25:
        for row, column in counts.nonzero().tolist():
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(
                column, row, str(counts[row, column].item()), ha="center", va="center", color=color, size=8
            )
    return figures.save(figure, path)


@figures.STYLE
def channels(maps: Tensor, title: str, path: Path) -> Figure:
    """Plot feature maps [C, H, W] in a grid; each is scaled to the full color range."""
    count, height, width = maps.shape
    columns = math.ceil(math.sqrt(count))
    grid = make_grid(
        maps[:, None], nrow=columns, padding=1, normalize=True, scale_each=True, pad_value=math.nan
    )[0]
    side = 8.0
    title = figures.wrap(title, 80)
    lines = title.count("\n") + 2
    figure = Figure(figsize=(side, side * grid.shape[0] / grid.shape[1] + 0.2 * lines), layout="constrained")
    axes = figure.subplots()
    axes.imshow(grid.numpy(), cmap="viridis", interpolation="nearest")
    axes.set_title(f"{title}\nchannels: {count} of {width} x {height}, each in its own color range", size=10)
    axes.set_axis_off()
    return figures.save(figure, path)
