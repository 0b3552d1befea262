"""EXIF orientation: how stored pixels are rotated and mirrored to be upright. Source: Exif 2.32, tag 274."""

from collections.abc import Callable
from typing import Final

import numpy as np
from PIL import Image

from resnet_service.images.preprocess import Pixels

_ORIENTATION_TAG: Final = 0x0112

_NUMPY: Final[dict[int, Callable[[Pixels], Pixels]]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}
_PILLOW: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TRANSPOSED: Final = (5, 6, 7, 8)
"""Orientations that swap width and height."""


def read_orientation(exif: Image.Exif) -> int | None:
    """Return the orientation, 1 to 8; None if the tag is missing or has another value."""
    orientation: object = exif.get(_ORIENTATION_TAG)
    return next((number for number in range(1, 9) if number == orientation), None)


def turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Rotate and mirror stored pixels [H, W, C] to upright."""
    return np.ascontiguousarray(_NUMPY[orientation](pixels)) if orientation in _NUMPY else pixels


def turn_image_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Rotate and mirror a stored image to upright."""
    return image.transpose(_PILLOW[orientation]) if orientation in _PILLOW else image


def upright_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Return the width and height of the upright image."""
    return (height, width) if orientation in _TRANSPOSED else (width, height)
