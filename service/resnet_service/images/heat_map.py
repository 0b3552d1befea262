"""Draw a heat map over an image, as a PNG file.

The colors run from black through red and yellow to white, so that they get lighter with the heat: they keep
their order in gray and for color-blind people.
"""

import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from resnet_service.images.preprocess import Crop

Heat = npt.NDArray[np.float32]
"""[H, W], 0 to 1."""

DEFAULT_OPACITY: Final = 0.55

_LEVELS: Final = 256
_COLORS: Final = np.rint(np.clip(3 * np.linspace(0, 1, _LEVELS)[:, None] - np.arange(3), 0, 1) * 255).astype(
    np.float32
)
"""[256, 3]: red rises in the first third, green in the second, blue in the third."""


def upscale(heat: Heat, side: int) -> Heat:
    """Return a heat map of side x side pixels, interpolated bilinearly."""
    image = Image.fromarray(heat).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32)


def draw_heat_map(crop: Crop, heat: Heat, opacity: float = DEFAULT_OPACITY) -> bytes:
    """Return a PNG file with `heat` over `crop` [S, S, 3]; `opacity` is that of the colors, 0 to 1."""
    levels = np.rint(upscale(heat, len(crop)) * (_LEVELS - 1)).astype(np.uint8)
    pixels = crop * np.float32(1 - opacity) + _COLORS[levels] * np.float32(opacity)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(pixels).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
