"""Augmentation of whole batches on the device: shift, mirror, cutout, and progressive resizing."""

import torch
from torch import Tensor
from torch.nn import functional


def augment(
    images: Tensor,
    generator: torch.Generator,
    *,
    mirrored: Tensor | None = None,
    shift: float = 0.0,
    cutout: float = 0.0,
) -> Tensor:
    """Shift each image, mirror those that `mirrored`, [N] bool, says, and gray out one square in each.

    Takes and gives [N, 3, S, S] float of mean 0. `shift` is the furthest move, whose gap the reflected edge
    fills, and `cutout` the square's side (DeVries and Taylor, 2017), both as shares of S; 0 leaves it out.
    The random numbers come from the CPU's `generator`, so they are the same on every device.
    """
    count, _, _, size = images.shape
    device = images.device

    def random(high: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator).to(device)

    pixel = torch.arange(size, device=device)
    if furthest := round(shift * size):
        padded = functional.pad(images, (furthest,) * 4, mode="reflect")
        rows = pixel + random(2 * furthest + 1)[:, None]
        columns = pixel + random(2 * furthest + 1)[:, None]
        each = torch.arange(count, device=device)[:, None, None]
        # Indices on both sides of the channels' slice put the channels last, which is where they belong.
        images = padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if mirrored is not None:
        images = torch.where(mirrored.to(device)[:, None, None, None], images.flip(3), images)
    if hole := round(cutout * size):
        inside_rows = (pixel - random(size)[:, None] + hole // 2).div(hole, rounding_mode="floor") == 0
        inside_columns = (pixel - random(size)[:, None] + hole // 2).div(hole, rounding_mode="floor") == 0
        images = images.masked_fill((inside_rows[:, :, None] & inside_columns[:, None, :])[:, None], 0.0)
    return images


def resize(images: Tensor, size: int) -> Tensor:
    """Return [N, 3, S, S] float images as [N, 3, size, size]."""
    if images.shape[-1] == size:
        return images
    return functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
