"""Decoding of valid images: formats, modes, EXIF orientation, animations, and their pixels."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnet_service.images import FORMATS, Preprocessing, decode_image
from tests.support.images import chunk, difference, encode, make_image

SMALL = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IDENTITY = Preprocessing(48, 48, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""For images of 48x48 pixels, whose crop equals the image."""


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_is_decoded(format: str) -> None:  # noqa: A002
    """Each format decodes to the image, within the loss of its codec."""
    if format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()  # to encode it
    image = make_image(48, 48)
    crop = decode_image(encode(image, format), IDENTITY)
    assert crop.shape == (48, 48, 3)
    assert crop.dtype == np.uint8
    assert difference(crop, image) < 8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_each_png_mode_becomes_rgb(mode: str) -> None:
    """Gray, palette and color images, with and without alpha, decode to RGB exactly."""
    image = make_image(48, 48, mode)
    assert difference(decode_image(encode(image, "PNG"), IDENTITY), image.convert("RGB")) == 0


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(format: str) -> None:  # noqa: A002
    """CMYK decodes to the original RGB within JPEG's loss, and not to its negative."""
    image = make_image(48, 48)
    assert difference(decode_image(encode(image.convert("CMYK"), format), IDENTITY), image) < 8


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_samples_are_scaled(format: str) -> None:  # noqa: A002
    """16-bit gray samples are scaled to 8 bits, not clipped at white."""
    gray = np.asarray(make_image(48, 48, "L"))
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    assert difference(decode_image(encode(deep, format), IDENTITY)[:, :, 0], gray) == 0


def test_transparent_pixels_are_white() -> None:
    """Transparency is composited on white, whatever the color of the transparent pixels."""
    assert decode_image(encode(Image.new("RGBA", (48, 48), (255, 0, 0, 0)), "PNG"), IDENTITY).min() == 255


def test_transparent_palette_index_is_white() -> None:
    """The transparent index of a palette image is white as well."""
    image = Image.new("P", (48, 48), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    assert decode_image(encode(image, "PNG", transparency=1), IDENTITY).min() == 255


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 50}, {"save_all": True}])
def test_webp_equals_pillow(mode: str, options: dict[str, Any]) -> None:
    """Still and animated WebP, with and without alpha, decode to Pillow's pixels on white."""
    image = make_image(48, 48, mode)
    if mode == "RGBA":
        image.putalpha(make_image(48, 48, "L", seed=1))
    if "save_all" in options:
        options = {**options, "append_images": [image.transpose(Image.Transpose.ROTATE_90)]}
    encoded = encode(image, "WEBP", **options)
    with Image.open(io.BytesIO(encoded)) as reference:
        assert (reference.mode, getattr(reference, "n_frames", 1) > 1) == (mode, "save_all" in options)
        expected = Image.new("RGBA", reference.size, "white")
        expected.alpha_composite(reference.convert("RGBA"))
    crop = decode_image(encoded, IDENTITY).astype(int)
    assert np.abs(crop - np.asarray(expected.convert("RGB"))).max() <= 1


def test_first_frame_of_animation_is_used() -> None:
    """An animation decodes to its first frame."""
    frames = [Image.new("RGB", (48, 48), color) for color in ("red", "blue")]
    crop = decode_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), IDENTITY)
    assert difference(crop, frames[0]) < 1


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "I;16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, mode: str) -> None:
    """An image stored in any of the eight EXIF orientations is upright after decoding, in each mode."""
    upright = make_image(48, 48, "L" if mode == "I;16" else mode)
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(inverse[orientation]) if orientation in inverse else upright
    if mode == "I;16":
        stored = Image.fromarray(np.asarray(stored).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = encode(stored, "PNG", exif=exif)
    assert difference(decode_image(image, IDENTITY), upright.convert("RGB")) == 0


def exif_with_tag(tag: int, kind: int, value: bytes) -> bytes:
    """Return EXIF data with the orientation 3 (rotated by 180 degrees) and another tag of any type."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 3, 0) + struct.pack("<HHI4s", tag, kind, 1, value)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + struct.pack("<I", 0)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0nonsense",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*",
        exif_with_tag(0x0131, 11, struct.pack("<f", 1.5)),  # Software as a float
        exif_with_tag(0x011A, 2, b"abc\0"),  # XResolution as text
    ],
)
def test_damaged_exif_is_ignored(exif: bytes) -> None:
    """Valid pixels with damaged EXIF are decoded, upright if the orientation is readable."""
    image = make_image(48, 48)
    crop = decode_image(encode(image, exif=exif), IDENTITY)
    assert min(difference(crop, image), difference(crop, image.rotate(180))) < 8


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (31, 33), (33, 31)])
def test_any_aspect_ratio_returns_the_crop(size: tuple[int, int]) -> None:
    """Tiny and elongated images are enlarged and cropped like any other."""
    assert decode_image(encode(make_image(*size), "PNG"), SMALL).shape == (32, 32, 3)


@pytest.mark.parametrize("subsampling", [0, 1, 2, -1])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"keep_rgb": True, "subsampling": 0}])
def test_jpeg_variants_equal_pillow(subsampling: int, options: dict[str, Any]) -> None:
    """Each chroma subsampling, progressive JPEG and RGB JPEG decode to Pillow's pixels exactly."""
    encoded = encode(make_image(48, 48), **{"subsampling": subsampling, **options})
    with Image.open(io.BytesIO(encoded)) as image:
        assert difference(decode_image(encoded, IDENTITY), image) == 0


PROFILE_SEGMENT = b"\xff\xe2\0\x11ICC_PROFILE\0\1\1p"


def with_header_parts(format: str, count: int, part: bytes) -> bytes:  # noqa: A002
    """Return an image of 48x48 pixels whose header contains `count` copies of `part`."""
    encoded = encode(make_image(48, 48), format)
    position = {"JPEG": 2, "PNG": 33, "GIF": 13 + 768}[format]
    return encoded[:position] + count * part + encoded[position:]


@pytest.mark.parametrize(
    ("format", "count", "part"),
    [
        ("JPEG", 255, PROFILE_SEGMENT),
        ("JPEG", 2_000, PROFILE_SEGMENT),
        ("JPEG", 1_000, b"\xff"),
        ("PNG", 40_000, chunk(b"teSt", b"")),
        ("PNG", 2, chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(100)))),
        ("GIF", 5_000, b"!\xfe\1c\0"),
    ],
)
def test_image_with_long_header_is_decoded(format: str, count: int, part: bytes) -> None:  # noqa: A002
    """Headers as large as programs write them, and larger, are accepted."""
    assert difference(decode_image(with_header_parts(format, count, part), IDENTITY), make_image(48, 48)) < 8


@pytest.mark.parametrize("big_tiff", [False, True])
def test_tiff_with_many_strips_is_decoded(big_tiff: bool) -> None:
    """One strip per row, a preview and a profile of 1 MB each are accepted, in classic TIFF and BigTIFF."""
    image = make_image(48, 48)
    metadata = {34675: bytes(10**6), 37724: bytes(10**6)}
    encoded = encode(image, "TIFF", strip_size=1, tiffinfo=metadata, big_tiff=big_tiff)
    assert difference(decode_image(encoded, IDENTITY), image) == 0


@pytest.mark.parametrize("orientation", [1, 6])
def test_orientation_in_xmp_is_ignored(orientation: int) -> None:
    """A JPEG whose orientation is only in its XMP is decoded as stored, as in browsers and OpenCV."""
    image = make_image(48, 48)
    xmp = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    encoded = with_header_parts("JPEG", 1, b"\xff\xe1" + struct.pack(">H", 2 + len(segment)) + segment)
    assert difference(decode_image(encoded, IDENTITY), image) < 8


def test_rotated_tiff_with_large_xmp_is_decoded_upright() -> None:
    """The orientation tag of a TIFF has precedence over its XMP."""
    image = make_image(48, 48)
    xmp = b'<x tiff:Orientation="1"/>' * 100_000
    encoded = encode(image, "TIFF", tiffinfo={274: 6, 700: xmp})
    assert difference(decode_image(encoded, IDENTITY), image.transpose(Image.Transpose.ROTATE_270)) == 0
