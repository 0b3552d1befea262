"""Plots of learning curves, confusion matrices and feature maps, as PNG files.

Needs matplotlib, an extra of the package: call `resnet_service.training.require_plots` before importing it.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor
from torchvision.utils import make_grid

from resnet_service.files import atomic_write

# Users choose the names of classes; a dollar sign in one does not start a formula.
_NO_MATH: Final = mpl.rc_context({"text.parse_math": False})


@_NO_MATH
def learning_curve(log: Mapping[str, Any], path: Path) -> None:
    """Plot loss, accuracy and learning rate over the epochs of a run's log."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = log["epochs"]
    title = f"{log['network']} on {log['data']}, seed {log['config']['training']['seed']}"
    numbers = [epoch["number"] for epoch in epochs]
    left.plot(numbers, [epoch["loss"] for epoch in epochs], marker=".", label="training loss")
    left.set(xlabel="epoch", ylabel="loss", title=title)
    rate = left.twinx()
    rate.plot(numbers, [epoch["learning_rate"] for epoch in epochs], color="0.7", label="learning rate")
    rate.set(ylabel="learning rate at the end of the epoch")
    left.legend(handles=[*left.lines, *rate.lines])
    for key, label in (("train_accuracy", "training, augmented"), ("accuracy", "test")):
        right.plot(numbers, [epoch[key] for epoch in epochs], marker=".", label=label)
    right.set(xlabel="epoch", ylabel="accuracy", title=f"test accuracy {epochs[-1]['accuracy']:.2%}")
    right.yaxis.set_major_formatter(PercentFormatter(1))
    right.grid(alpha=0.3)
    right.legend()
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _save(figure, path)


@_NO_MATH
def confusion_matrix(counts: Tensor, labels: Sequence[str], path: Path) -> None:
    """Plot a confusion matrix [C, C]; the color is the share of the row's class."""
    classes = len(labels)
    side = min(20.0, 3 + 0.45 * classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted class", ylabel="class", title="test images")
    if classes <= 50:
        axes.set_xticks(range(classes), labels, rotation=90)
        axes.set_yticks(range(classes), labels)
    if classes <= 25:
        for row, column in counts.nonzero().tolist():
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(
                column, row, str(counts[row, column].item()), ha="center", va="center", color=color, size=8
            )
    _save(figure, path)


@_NO_MATH
def channels(maps: Tensor, title: str, path: Path) -> None:
    """Plot feature maps [C, H, W] in a grid; each is scaled to the full color range."""
    columns = math.ceil(math.sqrt(len(maps)))
    grid = make_grid(
        maps[:, None], nrow=columns, padding=1, normalize=True, scale_each=True, pad_value=math.nan
    )[0]
    side = 8.0
    figure = Figure(figsize=(side, side * grid.shape[0] / grid.shape[1] + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(grid.numpy(), cmap="viridis", interpolation="nearest")
    axes.set_title(title)
    axes.set_axis_off()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
