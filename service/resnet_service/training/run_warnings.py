"""Warnings of a run that learns little or nothing, each with what to change."""

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

_MIN_STEPS: Final = 100
"""A LeNet on 2,000 images of CIFAR-10 is 10 % accurate (chance) after 15 steps in all, 34 % after 60 and 49 %
after 120; docs/training.md has the measurement."""

_START_FROM_A_MODEL: Final = "start from a model (--weights cifar10 or efficientnet_lite0, with --freeze)"


def check_steps(steps: int, images: int, *, is_pretrained: bool) -> str | None:
    """Return a warning if a network with random weights is trained for fewer than 100 steps."""
    if is_pretrained or steps >= _MIN_STEPS:
        return None
    return (
        f"{steps} steps on {images:,} images are too few for random weights; {_START_FROM_A_MODEL}, "
        "add images, or use more --epochs or a smaller --batch-size"
    )


def check_loss(losses: Sequence[float], classes: int) -> str | None:
    """Return a warning if the last of the epochs' losses is above that of an earlier epoch and of chance.

    Predicting all `classes` with the same probability has the loss ln(classes), with any label smoothing.
    """
    chance = math.log(classes)
    if losses[-1] <= chance or losses[-1] <= min(losses):
        return None
    return f"the loss rises and is above that of chance, {chance:.3f}; lower --max-lr"


def check_accuracy(accuracy: float, targets: Tensor, *, is_pretrained: bool) -> str | None:
    """Return a warning if the accuracy on test images is not above that of one class for all of them.

    `targets` are the classes of the test images, int64 [N].
    """
    chance = torch.bincount(targets).max().item() / len(targets)
    if accuracy > chance:
        return None
    advice = "" if is_pretrained else f"{_START_FROM_A_MODEL}, "
    return (
        f"the accuracy on the test images, {accuracy:.2%}, is not above that of always the most frequent "
        f"class, {chance:.2%}; {advice}use more images or --epochs, or lower --max-lr"
    )
