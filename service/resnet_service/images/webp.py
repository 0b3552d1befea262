"""Still WebP by the libwebp that Pillow brings, without Pillow's copies.

Pillow copies all pixels, four bytes each, while no other thread of the interpreter can run: 120 ms for 48
megapixels, in which the event loop answers nobody. That takes 2.5 times as long, and three times the memory.
"""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Final

import numpy as np

from resnet_service.images.preprocess import Pixels

_NAMES: Final = {3: "WebPDecodeRGBInto", 4: "WebPDecodeRGBAInto"}
_Into: Final = ctypes.CFUNCTYPE(
    *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
)


def decode(data: bytes | bytearray, width: int, height: int, channels: int) -> Pixels | None:
    """Return the pixels, [height, width, channels], RGB or RGBA.

    None where only Pillow can do it, as with animations, or say what is wrong. Source: libwebp's decode.h.
    """
    into = _decoder(channels)
    if into is None:
        return None
    stored = np.frombuffer(data, np.uint8)
    pixels = np.empty((height, width, channels), np.uint8)
    decoded = into(stored.ctypes.data, stored.nbytes, pixels.ctypes.data, pixels.nbytes, width * channels)
    return pixels if decoded else None


@cache
def _decoder(channels: int) -> Callable[..., int | None] | None:
    """Return libwebp's function, which other threads run beside; None where it cannot be reached."""
    # A Pillow without libwebp, or with one inside itself.
    with suppress(ImportError, OSError, AttributeError):
        from PIL import _webp

        return _Into((_NAMES[channels], ctypes.CDLL(_webp.__file__)))
    return None
