"""What a run leaves for people: run_log.json, the card, the learning curve and the confusion matrix."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from service.errors import ExtraMissing
from service.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def git_revision() -> str | None:
    """Return the commit this code was run from, with "+changes" where files differ; None outside a clone."""
    folder = Path(__file__).parent

    def git(*command: str) -> str:
        return subprocess.run(  # noqa: S603
            ["git", "-C", str(folder), *command],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # a site-packages inside another's clone is not this one
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def write_log(log: Mapping[str, Any], path: Path) -> None:
    """Write the run's log as JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")


def confusion(predicted: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Count the pictures of each class (row) by the class they were taken for (column), [C, C] int64."""
    return torch.bincount(targets * classes + predicted, minlength=classes**2).view(classes, classes)


def accuracy_by_class(counts: Tensor, labels: Sequence[str]) -> dict[str, float | None]:
    """Return each label's share of right answers, 0..1; None for one that has no pictures."""
    return {
        label: (row[index] / row.sum()).item() if row.sum() else None
        for index, (label, row) in enumerate(zip(labels, counts, strict=True))
    }


def card(log: Mapping[str, Any]) -> str:
    """Describe a trained model for people, as Markdown: what it is, how it was made, how good it is."""
    machine, request, pictures = log["hardware"], log["request"], log["pictures"]
    rows = {
        "Network": f"{log['network']}, {log['parameters']:,} parameters",
        "Input": f"[N, 3, {log['size']}, {log['size']}]",
        "Data": f"{log['data']}: {pictures['train']:,} training and {pictures['test']:,} test pictures",
        "Start": log["pretrained"] or "random weights",
        "Test accuracy": f"{log['accuracy']:.2%}",
        "With each picture's mirror image": f"{log['accuracy_mirrored']:.2%}",
        "Epochs": f"{request['options']['epochs']} in {log['seconds'] / 60:.1f} minutes",
        "Seed": str(request["options"]["seed"]),
        "Options": f"`{json.dumps(request['options'])}`",
        "Precision": f"{request['precision']}, stored as {request['store']}",
        "Hardware": f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores, {machine['os']}",
        "Software": f"resnet-service {log['version']}, torch {machine['torch']}",
        "Revision": log["revision"] or "unknown",
    }
    lines = [f"# {log['network']} on {log['data']}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines += ["", "| class | accuracy |", "|---|---|"]
    for label, accuracy in log["accuracy_by_class"].items():
        lines.append(f"| {label} | {'no test pictures' if accuracy is None else f'{accuracy:.1%}'} |")
    return "\n".join(lines) + "\n"


def check_plotting() -> None:
    """Raise ExtraMissing where matplotlib, an extra of the package, is not installed."""
    if find_spec("matplotlib") is None:
        raise ExtraMissing("plots need matplotlib: pip install 'resnet-service[train]'")


def plot_learning_curve(log: Mapping[str, Any], path: Path) -> None:
    """Draw loss, accuracy and learning rate over the epochs into a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

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


def plot_confusion(counts: Tensor, labels: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix [C, C] into a PNG, each row in shares of its class."""
    from matplotlib.figure import Figure

    classes = len(labels)
    side = min(20.0, 3 + 0.45 * classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="taken for", ylabel="class", title="test pictures")
    if classes <= 50:
        axes.set_xticks(range(classes), labels, rotation=90)
        axes.set_yticks(range(classes), labels)
    if classes <= 25:
        for row, column in counts.nonzero().tolist():
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(
                column, row, str(counts[row, column].item()), ha="center", va="center", color=colour, size=8
            )
    _save(figure, path)


def _save(figure: "Figure", path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
