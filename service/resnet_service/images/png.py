"""PNG files: leave out metadata, which may be damaged or large, and apply transparent colors at any depth.

Source: Portable Network Graphics (PNG) Specification, third edition.
"""

import io
import struct
import zlib
from typing import Final

import numpy as np
from PIL import Image

from resnet_service.errors import UnsupportedMediaType

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_HEAD: Final = struct.Struct(">I4s")
_CHECKSUM_BYTES: Final = 4
_IS_ANCILLARY: Final = 0x20
"""The bit of the first letter of a chunk's type that marks chunks which are not needed for the pixels."""
_NEEDED: Final = (b"tRNS", b"eXIf")
_END: Final = b"IEND"
_APPLE: Final = b"CgBI"
_DEPTH: Final = 24
"""Position of the byte with the bits per sample, in the first chunk."""
_TRANSPARENT_COLOR: Final = "transparency"
_WHITE: Final = 255


def strip_png(data: bytes | bytearray) -> bytes:
    """Return a PNG without the chunks that its pixels and its orientation do not need.

    Other viewers show an image with damaged or large metadata, too; Pillow rejects it. A chunk with a
    transparent color or an orientation is left out if its checksum is wrong. Raises UnsupportedMediaType for
    the variant of PNG that Apple's tools write for iOS.
    """
    view, position = memoryview(data), len(PNG_SIGNATURE)
    parts = [view[:position]]
    while position + _HEAD.size <= len(data):
        length, kind = _HEAD.unpack_from(data, position)
        end = position + _HEAD.size + length + _CHECKSUM_BYTES
        chunk = view[position:end]
        if kind == _APPLE:
            raise UnsupportedMediaType("PNG in Apple's variant CgBI is not supported; send a standard PNG")
        if not kind[0] & _IS_ANCILLARY or (kind in _NEEDED and _has_valid_checksum(chunk)):
            parts.append(chunk)
        position = len(data) if kind == _END else end
    return b"".join(parts)


def _has_valid_checksum(chunk: memoryview) -> bool:
    return chunk[-_CHECKSUM_BYTES:] == struct.pack(">I", zlib.crc32(chunk[4:-_CHECKSUM_BYTES]))


def composite_transparent_color(image: Image.Image, data: bytes | bytearray) -> Image.Image:
    """Make the transparent color of loaded pixels white, and 16-bit gray samples 8-bit ones.

    `data` is the file. Pixels and color are compared at the depth of the file; Pillow compares the upper 8
    bits of the pixels, or pixels that it has scaled, with the color. Other images are returned as they are.
    """
    color: object = image.info.get(_TRANSPARENT_COLOR)
    depth = data[_DEPTH]
    largest = (1 << depth) - 1
    if image.mode == "I;16":
        samples = np.asarray(image)
        gray = (samples >> 8).astype(np.uint8)
        if isinstance(color, int):
            gray[samples == color] = _WHITE
        return Image.fromarray(gray)
    if isinstance(color, int) and image.mode == "L":
        image.info[_TRANSPARENT_COLOR] = (color & largest) * _WHITE // largest
    if isinstance(color, tuple) and depth == 16:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as low:
            low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]  # the lower bytes
            samples = np.asarray(image).astype(np.uint16) << 8 | np.asarray(low)
        pixels = np.array(image)
        pixels[(samples == np.array(color)).all(axis=2)] = _WHITE
        return Image.fromarray(pixels)
    if isinstance(color, tuple):
        image.info[_TRANSPARENT_COLOR] = tuple(value & largest for value in color)
    return image
