"""Augment batches on the device: shift, mirror, cutout, and progressive resizing."""

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
    """Shift each image, mirror those selected by `mirrored`, and set one square in each to 0.

    `images` and the result are float [N, 3, S, S] with mean 0; `mirrored` is bool [N]. `shift` is the largest
    shift, and `cutout` (DeVries and Taylor, 2017) the side of the square, both as shares of S; 0 turns them
    off. The gap left by a shift is filled by reflection. Random numbers come from `generator`, which is on
    the CPU, so they are the same on every device.
    """
    count, _, _, size = images.shape
    device = images.device

    def random(high: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator).to(device)

    pixel = torch.arange(size, device=device)
    if max_shift := round(shift * size):
        padded = functional.pad(images, (max_shift,) * 4, mode="reflect")
        rows = pixel + random(2 * max_shift + 1)[:, None]
        columns = pixel + random(2 * max_shift + 1)[:, None]
        batch = torch.arange(count, device=device)[:, None, None]
        # Indices on both sides of the channels' slice put the channels last, so they are moved back.
        images = padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if mirrored is not None:
        images = torch.where(mirrored.to(device)[:, None, None, None], images.flip(3), images)
    if side := round(cutout * size):
        in_rows = (pixel - random(size)[:, None] + side // 2).div(side, rounding_mode="floor") == 0
        in_columns = (pixel - random(size)[:, None] + side // 2).div(side, rounding_mode="floor") == 0
        images = images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)
    return images


def resize(images: Tensor, size: int) -> Tensor:
    """Resize float images [N, 3, S, S] to [N, 3, size, size]."""
    if images.shape[-1] == size:
        return images
    return functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
