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


def read_orientation(segment: bytes | None) -> int:
    """Return the orientation in an EXIF segment, 1 to 8; 1 if there is none, or another value.

    Like browsers, OpenCV and libvips, and unlike Pillow, it does not consider XMP.
    """
    if segment is None:
        return 1
    exif = Image.Exif()
    try:
        exif.load(segment)
        value: object = exif.get(_ORIENTATION_TAG)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001
        # Pillow raises errors of many types for damaged EXIF, which cameras and editors write around valid
        # pixels. Viewers show such an image as stored.
        return 1
    if isinstance(value, bytes | tuple) and value:  # stored as bytes, or several times
        value = value[0]
    return next((number for number in range(1, 9) if number == value), 1)


def turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Rotate and mirror stored pixels [H, W, C] to upright."""
    return np.ascontiguousarray(_NUMPY[orientation](pixels)) if orientation in _NUMPY else pixels


def turn_image_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Rotate and mirror a stored image to upright."""
    return image.transpose(_PILLOW[orientation]) if orientation in _PILLOW else image
