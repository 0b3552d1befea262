"""PNG decodes to its pixels at every depth, whatever its metadata is."""

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnet_service.errors import InvalidImageError, UnsupportedMediaType
from resnet_service.images import Preprocessing, decode_image
from tests.support.images import chunk, difference, encode, make_image

IDENTITY = Preprocessing(48, 48, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
GRAY, COLOR = 0, 2


def png(samples: Any, depth: int, color_type: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """Return a PNG of these samples, [48, 48, C], with chunks before and after the pixels."""
    bits = (samples.reshape(48, -1, 1) >> np.arange(depth - 1, -1, -1) & 1).astype(np.uint8)
    rows = np.packbits(bits.reshape(48, -1), 1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 48, 48, depth, color_type, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + before + body + after + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("depth", "color_type"),
    [(1, GRAY), (2, GRAY), (4, GRAY), (8, GRAY), (16, GRAY), (8, COLOR), (16, COLOR)],
)
def test_transparent_color_is_white_at_each_depth(depth: int, color_type: int) -> None:
    """Exactly the pixels with the transparent color are white, also those that differ in the lower bits."""
    channels = 3 if color_type == COLOR else 1
    levels = (1 << depth) - 1
    samples = np.random.default_rng(0).integers(0, levels + 1, (48, 48, channels))
    samples[:8] = samples[20, 20]
    samples[:4, :, -1] ^= 1  # as dark, but another color
    transparent = samples[20, 20]
    image = png(samples, depth, color_type, chunk(b"tRNS", struct.pack(f">{channels}H", *transparent)))
    expected = samples >> 8 if depth == 16 else samples * 255 // levels
    expected = np.where((samples == transparent).all(2, keepdims=True), 255, expected)
    assert difference(decode_image(image, IDENTITY), np.broadcast_to(expected, (48, 48, 3))) == 0


METADATA = {
    "profile of 1.5 MB": chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(1_500_000))),
    "profile that is not compressed": chunk(b"iCCP", b"p\0\0nonsense"),
    "text of 2 MB": chunk(b"tEXt", b"Comment\0" + b"a" * 2_000_000),
    "compressed text of 100 MB": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000))),
    "unicode text of 2 MB": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"a" * 2_000_000),
    "text with a wrong checksum": chunk(b"tEXt", b"Comment\0hello")[:-4] + b"\0\0\0\0",
    "gamma of 3 bytes": chunk(b"gAMA", b"\0\0\1"),
    "chromaticities of 1 byte": chunk(b"cHRM", b"\0"),
    "resolution without a unit": chunk(b"pHYs", b"\0\0\0\1"),
    "empty background": chunk(b"bKGD", b""),
    "unknown chunk": chunk(b"abCd", b"\xff" * 1001),
    "orientation with a wrong checksum": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0")[:-4]
    + b"\0\0\0\0",
    "animation of one frame": chunk(b"acTL", struct.pack(">II", 1, 0)),
}


@pytest.mark.parametrize("metadata", METADATA.values(), ids=METADATA)
def test_metadata_does_not_keep_pixels_from_being_decoded(metadata: bytes) -> None:
    """Browsers, OpenCV and libvips show such images; the chunks are not needed for the pixels."""
    samples = np.asarray(make_image(48, 48))
    for position in ({"before": metadata}, {"after": metadata}):
        assert difference(decode_image(png(samples, 8, COLOR, **position), IDENTITY), samples) == 0


def test_transparent_color_with_a_wrong_checksum_is_ignored() -> None:
    """As libpng does; the image is opaque."""
    samples = np.asarray(make_image(48, 48, "L"))[..., None]
    damaged = chunk(b"tRNS", struct.pack(">H", samples[0, 0, 0]))[:-4] + b"\0\0\0\0"
    crop = decode_image(png(samples, 8, GRAY, damaged), IDENTITY)
    assert difference(crop, np.broadcast_to(samples, (48, 48, 3))) == 0


def test_wrong_checksum_of_pixels_is_invalid() -> None:
    """The pixels themselves are damaged."""
    image = bytearray(encode(make_image(48, 48), "PNG"))
    image[image.index(b"IDAT") + 20] ^= 0xFF
    with pytest.raises(InvalidImageError):
        decode_image(bytes(image), IDENTITY)


def test_variant_of_apple_is_named() -> None:
    """Its pixels are compressed in another way."""
    image = encode(make_image(48, 48), "PNG")
    with pytest.raises(UnsupportedMediaType, match="CgBI"):
        decode_image(image[:8] + chunk(b"CgBI", b"\x50\0\x20\2") + image[8:], IDENTITY)


def test_orientation_of_a_png_is_applied() -> None:
    """Its EXIF chunk is kept."""
    exif = Image.Exif()
    exif[0x0112] = 3
    image = make_image(48, 48)
    assert difference(decode_image(encode(image, "PNG", exif=exif), IDENTITY), image.rotate(180)) == 0
