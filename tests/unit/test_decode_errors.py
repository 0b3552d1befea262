"""Decoding of invalid, damaged and too large images: each raises a typed error."""

import gzip
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest

from resnet_service.errors import InvalidImageError, PayloadTooLarge, ServiceError, UnsupportedMediaType
from resnet_service.images import Preprocessing, decode_image
from tests.support.images import bomb, chunk, encode, make_image

SMALL = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def bmp(*masks: int, bits: int) -> bytes:
    """Return a BMP of 4x4 pixels with these masks of red, green and blue."""
    header = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, bits, 3, 16 * bits // 8, 0, 0, 0, 0)
    pixels = bytes(16 * bits // 8)
    start = 14 + len(header) + 12
    head = struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start)
    return head + header + struct.pack("<III", *masks) + pixels


def test_text_is_unsupported() -> None:
    """Data in no image format raises UnsupportedMediaType that lists the supported formats."""
    with pytest.raises(UnsupportedMediaType, match="JPEG"):
        decode_image(b"This is not an image. " * 100, SMALL)


def test_wav_audio_is_unsupported() -> None:
    """A WAV file is a RIFF file like WebP, and is unsupported."""
    with pytest.raises(UnsupportedMediaType):
        decode_image(b"RIFF\x24\0\0\0WAVEfmt " + bytes(100), SMALL)


def test_other_formats_of_pillow_are_unsupported() -> None:
    """Formats that Pillow supports but the service does not document, such as PPM, are unsupported."""
    with pytest.raises(UnsupportedMediaType):
        decode_image(encode(make_image(), "PPM"), SMALL)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"BMW builds cars, and this is a text about them. " * 20, "not an image"),
        (gzip.compress(encode(make_image())), "compressed with gzip"),
        (bmp(0x1F, 0x3F << 5, 0x1F << 11, bits=16), "Unsupported BMP"),
        (bmp(1, 2, 4, bits=32), "Unsupported BMP"),
    ],
    ids=["text", "gzip", "masks of 16 bits", "masks of 32 bits"],
)
def test_unsupported_data_is_named(data: bytes, reason: str) -> None:
    """What is not an image of a supported kind is not called a damaged image."""
    with pytest.raises(UnsupportedMediaType, match=reason):
        decode_image(data, SMALL)


def test_empty_data_is_invalid() -> None:
    """Empty data raises InvalidImageError that says so."""
    with pytest.raises(InvalidImageError, match="empty"):
        decode_image(b"", SMALL)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_truncated_image_raises_typed_error_or_decodes(format: str) -> None:  # noqa: A002
    """Truncated at every 16th byte, an image raises a typed error, or decodes (without GIF's trailer)."""
    encoded = encode(make_image(), format)
    for length in range(1, len(encoded) - 8, 16):
        with suppress(InvalidImageError, UnsupportedMediaType, PayloadTooLarge):
            assert decode_image(encoded[:length], SMALL).shape == (32, 32, 3)


def test_truncated_jpeg_is_invalid() -> None:
    """Half a JPEG raises InvalidImageError instead of decoding to an image that is half gray."""
    jpeg = encode(make_image(640, 480))
    with pytest.raises(InvalidImageError, match="truncated"):
        decode_image(jpeg[: len(jpeg) // 2], SMALL)


@pytest.mark.parametrize("value", [0x00, 0x7F, 0xFF])
def test_jpeg_with_damaged_header_raises_typed_error_or_decodes(value: int) -> None:
    """A change of any byte of the header raises no exception other than ServiceError."""
    encoded = encode(make_image())
    for position in range(encoded.index(b"\xff\xda") + 14):
        damaged = bytearray(encoded)
        damaged[position] = value
        with suppress(ServiceError):
            assert decode_image(damaged, SMALL).shape == (32, 32, 3)


@pytest.mark.parametrize("seed", range(20))
def test_flipped_bits_raise_typed_error_or_decode(seed: int, jpeg: bytes) -> None:
    """Flipped bits anywhere in the file raise no exception other than ServiceError."""
    random = np.random.default_rng(seed)
    for encoded in (jpeg, encode(make_image(), "PNG"), encode(make_image(), "TIFF")):
        damaged = np.frombuffer(encoded, np.uint8).copy()
        damaged[random.integers(0, len(damaged), 8)] ^= random.integers(1, 256, 8, dtype=np.uint8)
        with suppress(ServiceError):
            assert decode_image(damaged.tobytes(), SMALL).shape == (32, 32, 3)


def test_palette_png_without_palette_raises_typed_error_or_decodes() -> None:
    """A PNG that declares a palette but has none raises no exception other than InvalidImageError."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(20))) + chunk(b"IEND", b"")
    with suppress(InvalidImageError):
        assert decode_image(b"\x89PNG\r\n\x1a\n" + header + body, SMALL).shape == (32, 32, 3)


def test_damaged_tiff_writes_nothing_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    """Messages of libtiff do not appear on standard error."""
    damaged = bytearray(encode(make_image(), "TIFF", compression="tiff_adobe_deflate"))
    damaged[8:200] = b"\xff" * 192
    with pytest.raises(InvalidImageError):
        decode_image(damaged, SMALL)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_pixel_limit_is_exact(format: str) -> None:  # noqa: A002
    """An image of exactly `max_pixels` pixels is decoded; one more row raises PayloadTooLarge."""
    assert decode_image(encode(make_image(100, 10), format), SMALL, max_pixels=1000).shape == (32, 32, 3)
    with pytest.raises(PayloadTooLarge):
        decode_image(encode(make_image(100, 11), format), SMALL, max_pixels=1000)


def test_decompression_bomb_is_rejected_by_its_header() -> None:
    """A PNG of 30,000 x 30,000 pixels raises PayloadTooLarge before any pixel is decoded."""
    image = bomb(30_000, 30_000)
    assert len(image) < 200_000
    with pytest.raises(PayloadTooLarge, match="30000 x 30000"):
        decode_image(image, SMALL)


@pytest.mark.parametrize("marker", [b"\xff\x01", b"\xff\xd0", b"\xff"], ids=["TEM", "RST0", "fill"])
def test_pixel_limit_applies_to_the_frame_that_is_decoded(marker: bytes) -> None:
    """A marker without a length hides the frame from a reader that skips a length, and shows it a decoy."""
    hidden, decoy = encode(make_image(64, 48)), encode(make_image(16, 16))
    at = len(b"\xff\xd8") + len(marker)
    length = int.from_bytes((marker + hidden[2:])[2:4], "big")
    jpeg = (b"\xff\xd8" + marker + hidden[2:]).ljust(at + length, b"\0")[: 4 + length] + decoy[2:]
    with pytest.raises((PayloadTooLarge, InvalidImageError)):
        decode_image(jpeg, SMALL, max_pixels=1000)
