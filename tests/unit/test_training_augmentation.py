"""Augmentation of batches, and the image sizes of progressive training."""

from typing import Any

import torch
from torch import nn

from resnet_service.training.augmentation import augment, resize
from resnet_service.training.trainer import TrainingConfig


def test_progressive_training_uses_half_then_three_quarters_then_full_size() -> None:
    """Each size has a third of the epochs, and the last epoch always has the full size."""
    progressive = TrainingConfig(epochs=6, progressive=True)
    assert [progressive.size(number, 32) for number in range(1, 7)] == [16, 16, 24, 24, 32, 32]
    assert TrainingConfig(epochs=1, progressive=True).size(1, 32) == 32
    assert TrainingConfig(epochs=6).size(1, 32) == 32


def test_augmentation_keeps_the_shape_and_varies_between_images() -> None:
    """Each image is augmented independently, and its values stay in their range."""
    batch = torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32).repeat(64, 1, 1, 1)
    half = torch.arange(64) % 2 == 0
    augmented = augment(batch, torch.Generator().manual_seed(0), mirrored=half, shift=0.125, cutout=0.25)
    assert augmented.shape == batch.shape
    assert 0 <= augmented.min() < augmented.max() <= 1
    assert len({tuple(image.flatten().tolist()) for image in augmented}) > 60


def augmented_pairs(**options: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return 32 images of random pixels, each with its augmented version."""
    batch = torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(0)) + 1
    return list(zip(batch, augment(batch, torch.Generator().manual_seed(1), **options), strict=True))


def test_no_augmentation_leaves_the_images_unchanged() -> None:
    assert all(torch.equal(before, after) for before, after in augmented_pairs())


def test_mirroring_flips_the_selected_images() -> None:
    for number, (before, after) in enumerate(augmented_pairs(mirrored=torch.arange(32) % 2 == 0)):
        assert torch.equal(after, before.flip(2) if number % 2 == 0 else before)


def test_shift_moves_the_image_and_fills_the_gap_by_reflection() -> None:
    for before, after in augmented_pairs(shift=0.125):
        padded = nn.functional.pad(before[None], (2,) * 4, mode="reflect")[0]
        windows = [padded[:, y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
        assert any(torch.equal(after, window) for window in windows)


def test_cutout_sets_one_square_to_zero() -> None:
    for before, after in augmented_pairs(cutout=0.25):
        gray = after.eq(0).all(0)
        assert torch.equal(after[:, ~gray], before[:, ~gray])
        assert 4 <= gray.sum() <= 16  # a part of the square may be outside of the image


def test_resize_changes_height_and_width() -> None:
    assert resize(torch.zeros(32, 3, 16, 16), 8).shape == (32, 3, 8, 8)
