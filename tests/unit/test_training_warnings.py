"""Warnings of runs that learn little."""

import math

import pytest
import torch

from resnet_service.training.run_warnings import check_accuracy, check_loss, check_steps


def test_few_steps_from_random_weights_are_a_warning() -> None:
    """It names what to change; a run that starts from a model needs fewer."""
    warning = check_steps(16, 60, is_pretrained=False)
    assert warning is not None
    assert warning.startswith("16 steps on 60 images")
    assert all(flag in warning for flag in ("--weights", "--freeze", "--epochs", "--batch-size"))
    assert check_steps(100, 60, is_pretrained=False) is None
    assert check_steps(16, 60, is_pretrained=True) is None


@pytest.mark.parametrize(
    ("losses", "is_warning"),
    [
        ([2.0], False),
        ([2.0, 2.5], True),
        ([2.5, 2.0, 2.4], True),
        ([2.5, 2.4], False),
        ([1.0, 2.3], False),
    ],
)
def test_loss_that_rises_above_that_of_chance_is_a_warning(losses: list[float], is_warning: bool) -> None:
    """Chance among ten classes has the loss ln(10), 2.303; a first or a falling loss may be above it."""
    warning = check_loss(losses, 10)
    assert (warning is not None) == is_warning
    assert warning is None or ("--max-lr" in warning and f"{math.log(10):.3f}" in warning)


@pytest.mark.parametrize(("accuracy", "is_warning"), [(0.76, False), (0.75, True), (0.5, True)])
def test_accuracy_that_one_class_for_all_images_reaches_is_a_warning(
    accuracy: float, is_warning: bool
) -> None:
    """Three of four test images have the same class. A run that starts from a model is not told to."""
    for is_pretrained in (False, True):
        warning = check_accuracy(accuracy, torch.tensor([0, 0, 1, 0]), is_pretrained=is_pretrained)
        assert (warning is not None) == is_warning
        assert warning is None or ("--weights" in warning) != is_pretrained
        assert warning is None or "--max-lr" in warning
