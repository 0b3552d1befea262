"""Learning curves, confusion matrices and maps of channels as PNG files.

Needs matplotlib, an extra of the package: ask `resnet_service.training.require_plots` before importing it.
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

# Names of classes are people's own, and a dollar in one is no formula.
_PLAIN_TEXT: Final = mpl.rc_context({"text.parse_math": False})


@_PLAIN_TEXT
def learning_curve(log: Mapping[str, Any], path: Path) -> None:
    """Draw loss, accuracy and learning rate over the epochs into a PNG."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = log["epochs"]
    title = f"{log['network']} on {log['data']}, seed {log['request']['options']['seed']}"
    numbers = [epoch["number"] for epoch in epochs]
    left.plot(numbers, [epoch["loss"] for epoch in epochs], marker=".", label="training loss")
    left.set(xlabel="epoch", ylabel="loss", title=title)
    rate = left.twinx()
    rate.plot(numbers, [epoch["learning_rate"] for epoch in epochs], color="0.7", label="learning rate")
    rate.set(ylabel="learning rate at the epoch's end")
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


@_PLAIN_TEXT
def confusion_matrix(counts: Tensor, labels: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix [C, C] into a PNG, each row in shares of its class."""
    classes = len(labels)
    side = min(20.0, 3 + 0.45 * classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="taken for", ylabel="class", title="test images")
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


@_PLAIN_TEXT
def channels(maps: Tensor, title: str, path: Path) -> None:
    """Draw the maps [C, H, W] side by side, each stretched to its own range, with a scale of colors."""
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
