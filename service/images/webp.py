"""Still WebP by the libwebp that Pillow brings, without Pillow's copies.

Pillow copies all pixels, four bytes each, while no other thread of the interpreter can run: 120 ms for 48
megapixels, in which the event loop answers nobody. That takes 2.5 times as long, and three times the memory.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
from PIL import _webp

from service.images.preprocessing import Pixels

_DECODERS: Final = {3: "WebPDecodeRGBInto", 4: "WebPDecodeRGBAInto"}
_ARGUMENTS: Final = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


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
def _decoder(channels: int) -> Callable[..., Any] | None:
    """Return libwebp's function, which other threads run beside; None where Pillow has libwebp within it."""
    function = getattr(ctypes.CDLL(_webp.__file__), _DECODERS[channels], None)
    if function is not None:
        function.argtypes = _ARGUMENTS
        function.restype = ctypes.c_void_p
    return function
