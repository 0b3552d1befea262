"""Limits on image headers: small files that would take much memory or time to decode are rejected."""

import struct
import zlib

import pytest
from PIL import Image
from PIL.TiffImagePlugin import PREFIXES

from load_tests.fuzz import decompression_bombs as bombs
from resnet_service.errors import PayloadTooLarge
from resnet_service.images import Preprocessing, decode_image
from tests.support.images import chunk, difference, encode, make_image

SMALL = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IDENTITY = Preprocessing(48, 48, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""For images of 48x48 pixels, whose crop equals the image."""

PROFILE_SEGMENT = b"\xff\xe2\0\x11ICC_PROFILE\0\1\1p"


def with_header_parts(format: str, count: int, part: bytes) -> bytes:  # noqa: A002
    """Return a small image whose header contains `count` copies of `part`."""
    encoded = encode(make_image(48, 48), format)
    position = {"JPEG": 2, "PNG": 33, "GIF": 13 + 768, "WEBP": len(encoded)}[format]
    return encoded[:position] + count * part + encoded[position:]


@pytest.mark.parametrize(
    ("format", "count", "part"),
    [
        ("JPEG", 2_001, PROFILE_SEGMENT),
        ("JPEG", 60_000, b"\xff"),
        ("JPEG", 30_000, b"\xff\xd0"),
        ("JPEG", 60_000, b"\0"),
        ("JPEG", 2, b"\xff\xc0\0\x0b\x08\0\1\0\1\1\1\x11\0"),
        ("PNG", 50_000, chunk(b"teSt", b"")),
        ("PNG", 5, chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**20)))),
        ("GIF", 20_000, b"!\xfe\1c\0"),
        ("GIF", 20_000, b"\0"),
        ("WEBP", 50_000, b"teSt\0\0\0\0"),
    ],
)
def test_excessive_header_is_rejected(format: str, count: int, part: bytes) -> None:  # noqa: A002
    """Pillow reads a header part by part in Python, so that 20 MB could take a minute or 700 MB."""
    with pytest.raises(PayloadTooLarge, match="parts"):
        decode_image(with_header_parts(format, count, part), SMALL)


@pytest.mark.parametrize(
    ("format", "count", "part"),
    [
        ("JPEG", 255, PROFILE_SEGMENT),
        ("JPEG", 1_000, b"\xff"),
        ("PNG", 40_000, chunk(b"teSt", b"")),
        ("PNG", 2, chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(100)))),
        ("GIF", 5_000, b"!\xfe\1c\0"),
    ],
)
def test_long_header_within_limits_is_decoded(format: str, count: int, part: bytes) -> None:  # noqa: A002
    """Headers as large as programs write them, and larger, are accepted."""
    assert difference(decode_image(with_header_parts(format, count, part), IDENTITY), make_image(48, 48)) < 8


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_with_1000_scans_is_rejected(progressive: bool) -> None:
    """Each scan of a JPEG can cost a pass over all pixels, so their number is limited."""
    encoded = encode(make_image(64, 64), "JPEG", progressive=progressive)
    scan = encoded[encoded.rindex(b"\xff\xda") : -2]
    with pytest.raises(PayloadTooLarge, match="scans"):
        decode_image(encoded[:-2] + 1000 * scan + encoded[-2:], SMALL)


def test_jpeg_with_excessive_exif_is_rejected() -> None:
    """Pillow joins all EXIF segments, so their number is limited."""
    segment = b"\xff\xe1" + struct.pack(">H", 2 + 6 + 60_000) + b"Exif\0\0" + bytes(60_000)
    with pytest.raises(PayloadTooLarge, match="parts"):
        decode_image(with_header_parts("JPEG", 17, segment), SMALL)


def exif_with_values(count: int) -> bytes:
    """Return EXIF whose orientation has `count` fractions, each of which is 6 (rotated by 90 degrees)."""
    directory = struct.pack("<IHHHIII", 8, 1, 274, 5, count, 26, 0)
    return b"II*\0" + directory + struct.pack("<II", 6, 1) * count


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(("count", "is_rotated"), [(1, True), (130_000, False)])
def test_excessive_exif_in_png_is_ignored(raw: bool, count: int, is_rotated: bool) -> None:
    """EXIF that would become many objects is not read; the image is decoded as it is stored."""
    image = make_image(48, 48)
    encoded = encode(image, "PNG")
    exif = exif_with_values(count)
    text = f"Raw profile type exif\0\nexif\n{8 * count}\n{exif.hex()}"
    exif_chunk = chunk(b"tEXt", text.encode()) if raw else chunk(b"eXIf", exif)
    expected = image.transpose(Image.Transpose.ROTATE_270) if is_rotated else image
    crop = decode_image(encoded[:33] + exif_chunk + encoded[33:], IDENTITY)
    assert difference(crop, expected) == 0


@pytest.mark.parametrize("signature", PREFIXES)
@pytest.mark.parametrize(
    ("tag", "kind", "count"),
    [
        (258, 5, 300_001),
        (274, 3, 300_001),
        (65_000, 12, 10**6),
        *((tag, 1, 300_001) for tag in (273, 320, 338, 339)),
    ],
)
def test_tiff_with_excessive_values_is_rejected(signature: bytes, tag: int, kind: int, count: int) -> None:
    """Pillow makes an object of each number in a tag, so that 20 MB could take ten seconds or 4 GB."""
    order = "<" if signature.startswith(b"II") else ">"
    is_big = signature == b"II+\0"  # Pillow reads big-endian BigTIFF as classic TIFF
    tags = {**bombs.tiff_tags(48, 48, 64), tag: (kind, count, 8)}
    entry, sizes = ("HHQQ", "HHQQ") if is_big else ("HHI", "IH")
    header = struct.pack(f"{order}{sizes}", *((8, 0, 16, len(tags)) if is_big else (8, len(tags))))
    tag_format = f"{order}{entry}{'' if is_big else 'I'}"
    entries = b"".join(struct.pack(tag_format, key, *tags[key]) for key in sorted(tags))
    with pytest.raises(PayloadTooLarge, match="parts"):
        decode_image(signature + header + entries + bytes(64), IDENTITY)


def test_tiff_with_excessive_tags_is_rejected() -> None:
    """BigTIFF has a 64-bit number of tags."""
    tiff = struct.pack("<4sHHQQ", b"II+\0", 8, 0, 16, 2**63) + bytes(2_000_000)
    with pytest.raises(PayloadTooLarge, match="parts"):
        decode_image(tiff, IDENTITY)


@pytest.mark.parametrize("big_tiff", [False, True])
def test_tiff_with_many_strips_is_decoded(big_tiff: bool) -> None:
    """One strip per row, a preview and a profile of 1 MB each are accepted, in classic TIFF and BigTIFF."""
    image = make_image(48, 48)
    metadata = {34675: bytes(10**6), 37724: bytes(10**6)}
    encoded = encode(image, "TIFF", strip_size=1, tiffinfo=metadata, big_tiff=big_tiff)
    assert difference(decode_image(encoded, IDENTITY), image) == 0


def test_exif_and_gps_directories_of_tiff_are_not_read() -> None:
    """Only the first directory has a limit, so the others are not read; the image is decoded."""
    crop = decode_image(bombs.tiff_directories(1), IDENTITY)
    assert difference(crop, Image.new("RGB", (48, 48))) == 0


def test_rotated_tiff_with_large_xmp_is_decoded_upright() -> None:
    """Pillow would search a large XMP several times while it holds the GIL; the orientation tag is used."""
    image = make_image(48, 48)
    xmp = b'<x tiff:Orientation="1"/>' * 100_000
    encoded = encode(image, "TIFF", tiffinfo={274: 6, 700: xmp})
    assert difference(decode_image(encoded, IDENTITY), image.transpose(Image.Transpose.ROTATE_270)) == 0


def test_tiff_with_huge_tile_is_rejected() -> None:
    """A tile of a TIFF can be larger than the image; the pixel limit applies to tiles, too."""
    tags = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: 45008, 323: 45008, 324: 8, 325: 8}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    tiff = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    with pytest.raises(PayloadTooLarge, match="tiles"):
        decode_image(tiff, SMALL)


@pytest.mark.parametrize("disposal", [2, 3])
def test_gif_frame_larger_than_its_screen_is_rejected(disposal: int) -> None:
    """Pillow fills the frame while it reads the header, so that 43 bytes could take 4 GB."""
    control = bytes([0x21, 0xF9, 4, disposal << 2 | 1, 0, 0, 0, 0])
    frame = b",\0\0\0\0" + struct.pack("<HH", 9_000, 9_000) + b"\0\2\0;"
    with pytest.raises(PayloadTooLarge, match="9000 x 9000"):
        decode_image(b"GIF89a\1\0\1\0\0\0\0" + control + frame, SMALL)


def test_animated_webp_over_16_megapixels_is_rejected() -> None:
    """Pillow copies its first frame while it holds the GIL; a file of 200 bytes can declare any size."""
    assert decode_image(bombs.webp_in_a_corner(100, 100), SMALL).shape == (32, 32, 3)
    with pytest.raises(PayloadTooLarge, match="16,000,000"):
        decode_image(bombs.webp_in_a_corner(5000, 4000), SMALL)
