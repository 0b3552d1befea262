"""Augmentation of whole batches on the device: shift, mirror, cutout, and progressive resizing."""

import torch
from torch import Tensor
from torch.nn import functional


def augment(
    pictures: Tensor,
    generator: torch.Generator,
    *,
    mirrored: Tensor | None = None,
    shift: float = 0.0,
    cutout: float = 0.0,
) -> Tensor:
    """Shift each picture, mirror those that `mirrored`, [N] bool, says, and grey out one square in each.

    Takes and gives [N, 3, S, S] float of mean 0. `shift` is the furthest move, whose gap the reflected edge
    fills, and `cutout` the square's side (DeVries and Taylor, 2017), both as shares of S; 0 leaves it out.
    The random numbers come from the CPU's `generator`, so they are the same on every device.
    """
    count, _, _, size = pictures.shape
    device = pictures.device

    def random(high: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator).to(device)

    pixel = torch.arange(size, device=device)
    if furthest := round(shift * size):
        padded = functional.pad(pictures, (furthest,) * 4, mode="reflect")
        rows = pixel + random(2 * furthest + 1)[:, None]
        columns = pixel + random(2 * furthest + 1)[:, None]
        each = torch.arange(count, device=device)[:, None, None]
        # Indices on both sides of the channels' slice put the channels last, which is where they belong.
        pictures = padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if mirrored is not None:
        pictures = torch.where(mirrored.to(device)[:, None, None, None], pictures.flip(3), pictures)
    if hole := round(cutout * size):
        inside_rows = (pixel - random(size)[:, None] + hole // 2).div(hole, rounding_mode="floor") == 0
        inside_columns = (pixel - random(size)[:, None] + hole // 2).div(hole, rounding_mode="floor") == 0
        pictures = pictures.masked_fill((inside_rows[:, :, None] & inside_columns[:, None, :])[:, None], 0.0)
    return pictures


def resize(pictures: Tensor, size: int) -> Tensor:
    """Return [N, 3, S, S] float pictures as [N, 3, size, size]."""
    if pictures.shape[-1] == size:
        return pictures
    return functional.interpolate(pictures, (size, size), mode="bilinear", antialias=True)
