"""TIFF files: reject kinds that Pillow decodes to wrong pixels or not at all, and scale samples to 8 bits.

The kinds were tried with pixels of known values, written by other programs. Source of the tags: TIFF 6.0.
"""

import io
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from resnet_service.errors import InvalidImageError, UnsupportedMediaType

TIFF_SIGNATURES: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BIG_ENDIAN: Final = b"MM"
_BIG_TIFF: Final = b"II+\0"
_BIG_ENDIAN_BIG_TIFF: Final = b"MM\0+"

# Tags
_WIDTH: Final = 256
_BITS: Final = 258
_COMPRESSION: Final = 259
_PHOTOMETRIC: Final = 262
_FILL_ORDER: Final = 266
_STRIPS: Final = 273
_SAMPLES: Final = 277
_PLANES: Final = 284
_COLORS: Final = 320
_TILES: Final = 324
_EXTRA_SAMPLES: Final = 338
_SAMPLE_FORMAT: Final = 339

# Values
_WHITE_IS_ZERO: Final = 0
_UNCOMPRESSED: Final = 1
_SEPARATE_PLANES: Final = 2
_LOWEST_BIT_FIRST: Final = 2
_PREMULTIPLIED: Final = 1
_UNSIGNED: Final = 1
_MAX_NAMED: Final = 8
"""Samples of a pixel that an error lists."""
_COMPRESSIONS: Final = frozenset((1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000))
"""None, CCITT (3), LZW, JPEG (2), deflate (2), PackBits, LZMA and Zstandard."""
_COLOR_SPACES: Final = {0: "gray", 1: "gray", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
_BITS_PER_SAMPLE: Final[dict[str, set[tuple[int, ...]]]] = {
    "gray": {(1,), (2,), (4,), (8,), (12,), (16,), (8, 8)},
    "RGB": {(8,) * 3, (8,) * 4, (8,) * 5, (8,) * 6, (16,) * 3, (16,) * 4},
    "palette": {(1,), (2,), (4,), (8,), (8, 8)},
    "CMYK": {(8,) * 4, (8,) * 5, (8,) * 6, (16,) * 4},
    "YCbCr": {(8,), (8,) * 3},
    "Lab": {(8,) * 3},
}


def check_tiff(data: bytes | bytearray) -> None:
    """Raise UnsupportedMediaType, which names the kind, if a TIFF cannot be decoded correctly.

    Raises InvalidImageError if its directory is incomplete, and what Pillow raises if it is damaged.
    """
    if data.startswith(_BIG_ENDIAN_BIG_TIFF):
        kind: str | None = "big-endian BigTIFF"
    else:
        file = io.BytesIO(data)
        tags = ImageFileDirectory_v2(file.read(16 if data.startswith(_BIG_TIFF) else 8))
        file.seek(tags.next)
        tags.load(file)
        if _WIDTH not in tags or (_STRIPS not in tags and _TILES not in tags):
            raise InvalidImageError("the TIFF is damaged: its directory has no size or no pixels")
        kind = _unsupported_kind(tags, is_big_endian=data.startswith(_BIG_ENDIAN))
    if kind is not None:
        raise UnsupportedMediaType(f"{kind} is not supported; send PNG or JPEG")


def _unsupported_kind(tags: Mapping[int, Any], *, is_big_endian: bool) -> str | None:
    photometric = tags.get(_PHOTOMETRIC, _WHITE_IS_ZERO)
    if photometric not in _COLOR_SPACES:
        return f"TIFF with photometric interpretation {photometric}"
    compression = tags.get(_COMPRESSION, _UNCOMPRESSED)
    if compression not in _COMPRESSIONS:
        return f"TIFF with compression {compression}"
    color_space = _COLOR_SPACES[photometric]
    kind = f"{color_space} TIFF"
    if set(tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))) != {_UNSIGNED}:
        return f"{kind} with signed or floating-point samples"
    bits = tuple(tags.get(_BITS, (1,)))
    bits = bits * tags.get(_SAMPLES, 1) if len(bits) == 1 else bits
    if bits not in _BITS_PER_SAMPLE[color_space]:
        return f"{kind} with {' + '.join(map(str, bits[:_MAX_NAMED]))} bits per pixel"
    extra = tags.get(_EXTRA_SAMPLES, ())
    if (color_space == "gray" and _PREMULTIPLIED in extra) or (color_space == "CMYK" and any(extra)):
        return f"{kind} with alpha"
    white_is_zero, is_reversed = photometric == _WHITE_IS_ZERO, tags.get(_FILL_ORDER) == _LOWEST_BIT_FIRST
    if tags.get(_PLANES) == _SEPARATE_PLANES:
        is_uncompressed = compression == _UNCOMPRESSED
        is_plain = bits in ((8,), (8,) * 3) and not (white_is_zero or is_reversed or extra)
        if (is_uncompressed and not is_plain) or (color_space in ("gray", "palette") and extra):
            return f"{kind} with {max(bits)}-bit samples in separate planes"
    if color_space == "gray" and max(bits) > 8 and (is_big_endian or is_reversed or bits == (12,)):
        if white_is_zero:
            return f"{kind} with {bits[0]}-bit samples in which 0 is white"
        if bits == (12,) and (is_big_endian or is_reversed):
            return f"{kind} with 12-bit samples in this order of bytes or bits"
    return None


def scale_tiff(image: TiffImageFile) -> Image.Image:
    """Return the loaded pixels of a TIFF with 8 bits per sample, which Pillow does not always do."""
    tags = image.tag_v2
    if image.mode.startswith("I;16"):
        bits = tags[_BITS][0]
        samples = np.asarray(image)
        if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            samples = (1 << bits) - 1 - samples
        return Image.fromarray((samples >> (bits - 8)).astype(np.uint8))
    if image.mode in ("P", "PA") and max(tags[_COLORS]) < 256:
        # The values should have 16 bits, of which Pillow takes the upper 8; some programs write 8.
        image.putpalette(np.reshape(tags[_COLORS], (3, -1)).T.astype(np.uint8).tobytes())
    return image
