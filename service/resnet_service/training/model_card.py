"""What there is to tell about a run: the code it ran, how good its network is, and the card."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def git_revision() -> str | None:
    """Return the commit this code was run from, with "+changes" where files differ; None outside a clone."""
    folder = Path(__file__).parents[1]

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


def confusion_matrix(predicted: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Count the images of each class (row) by the class they were taken for (column), [C, C] int64."""
    return torch.bincount(targets * classes + predicted, minlength=classes**2).view(classes, classes)


def accuracy_by_class(counts: Tensor, labels: Sequence[str]) -> dict[str, float | None]:
    """Return each label's share of right answers, 0..1; None for one that has no images.

    Of two classes with one label, as ImageNet has them, the one that has images counts.
    """
    shares: dict[str, float | None] = {}
    for index, (label, row) in enumerate(zip(labels, counts, strict=True)):
        if row.sum():
            shares[label] = (row[index] / row.sum()).item()
        else:
            shares.setdefault(label, None)
    return shares


def render_model_card(log: Mapping[str, Any]) -> str:
    """Describe a trained model for people, as Markdown: what it is, how it was made, how good it is."""
    machine, request, images = log["hardware"], log["request"], log["images"]
    rows = {
        "Network": f"{log['network']}, {log['parameters']:,} parameters",
        "Input": f"[N, 3, {log['size']}, {log['size']}]",
        "Data": f"{log['data']}: {images['train']:,} training and {images['test']:,} test images",
        "TrainingSetup": log["pretrained"] or "random weights",
        "Test accuracy": f"{log['accuracy']:.2%}",
        "With each image's mirror image": f"{log['accuracy_mirrored']:.2%}",
        "Epochs": f"{request['options']['epochs']} in {log['seconds'] / 60:.1f} minutes",
        "Seed": str(request["options"]["seed"]),
        "TrainingConfig": f"`{json.dumps(request['options'])}`",
        "Precision": f"{request['precision']}; stored as {request['store']}, tested in {log['tested_in']}",
        "Hardware": f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores, {machine['os']}",
        "Software": f"resnet-service {log['version']}, torch {machine['torch']}",
        "Revision": log["revision"] or "unknown",
    }
    lines = [f"# {log['network']} on {log['data']}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines += ["", "| class | accuracy |", "|---|---|"]
    for label, accuracy in log["accuracy_by_class"].items():
        lines.append(f"| {label} | {'no test images' if accuracy is None else f'{accuracy:.1%}'} |")
    return "\n".join(lines) + "\n"
