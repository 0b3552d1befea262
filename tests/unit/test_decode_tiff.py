"""TIFF of every kind decodes to its pixels, which are known, or is rejected with the name of its kind."""

from itertools import product
from typing import Any, Final

import numpy as np
import pytest

from load_tests.fuzz.tiff_kinds import write_tiff
from resnet_service.errors import InvalidImageError, UnsupportedMediaType
from resnet_service.images import Preprocessing, decode_image
from tests.support.images import difference, make_image

IDENTITY = Preprocessing(48, 48, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5
NONE, DEFLATE = 1, 8
GRAY: Final = np.asarray(make_image(48, 48, "L")).astype(np.uint64)[..., None]
COLOR: Final = np.asarray(make_image(48, 48)).astype(np.uint64)
ALPHA: Final = np.asarray(make_image(48, 48, "L", seed=3)).astype(np.uint64)[..., None]


def tiff_and_pixels(photometric: int, bits: int, extra: int | None, **options: Any) -> tuple[bytes, Any]:
    """Return a TIFF and the pixels that it shows, on white if it has alpha (`extra` 1: premultiplied, 2)."""
    levels = (1 << bits) - 1
    values = (COLOR if photometric == RGB else GRAY) * levels // 255
    pixels = np.round(values * 255.0 / levels)
    colors: list[int] = []
    if photometric == PALETTE:
        shades = [i * 37 % 256 for i in range(1 << bits)]
        colors = [shade * 257 for shade in shades] * 3
        pixels = np.array(shades, float)[values.astype(int)]
    stored = levels - values if photometric == WHITE_IS_ZERO else values
    if extra is not None:
        alpha = ALPHA * levels // 255
        opacity = alpha / levels
        if extra == 1:
            stored = np.round(stored * opacity).astype(np.uint64)
        if extra in (1, 2):
            pixels = pixels * opacity + 255 * (1 - opacity)
        stored = np.concatenate((stored, alpha), 2)
        options["extra"] = [extra]
    return write_tiff(stored, bits, photometric, colors=colors, **options), pixels


@pytest.mark.parametrize(
    ("photometric", "bits"),
    [
        *product((WHITE_IS_ZERO, BLACK_IS_ZERO, RGB), (1, 2, 4, 8, 10, 12, 14, 16)),
        *product((PALETTE,), (1, 2, 4, 8)),
    ],
)
def test_each_tiff_decodes_to_its_pixels_or_is_unsupported(photometric: int, bits: int) -> None:
    """In each byte order, order of bits, layout of planes and use of alpha, plain and compressed."""
    flags = (False, True)
    extras = (None, 0) if photometric == WHITE_IS_ZERO else (None, 0, 1, 2)
    decoded = 0
    for compression, big_endian, big_tiff, separate, reverse_bits, extra in product(
        (NONE, DEFLATE), flags, flags, flags, flags, extras
    ):
        options: dict[str, Any] = {"big_endian": big_endian, "big_tiff": big_tiff, "separate": separate}
        options |= {"compression": compression, "reverse_bits": reverse_bits}
        tiff, pixels = tiff_and_pixels(photometric, bits, extra, **options)
        try:
            crop = decode_image(tiff, IDENTITY)
        except UnsupportedMediaType:
            continue
        decoded += 1
        assert difference(crop, pixels) < 2, (options, extra)
    depths = (8, 16) if photometric == RGB else (1, 2, 4, 8, 16)
    assert (decoded > 0) == (bits in depths or (photometric, bits) == (BLACK_IS_ZERO, 12))


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("compression", [NONE, DEFLATE])
def test_palette_with_8_bit_colors_is_decoded(compression: int, big_endian: bool) -> None:
    """Some programs write colors from 0 to 255 instead of 65535; their images were black."""
    shades = [i * 37 % 256 for i in range(256)]
    tiff = write_tiff(GRAY, 8, PALETTE, colors=shades * 3, compression=compression, big_endian=big_endian)
    assert difference(decode_image(tiff, IDENTITY), np.array(shades)[GRAY.astype(int)]) == 0


@pytest.mark.parametrize(
    ("values", "options", "name"),
    [
        (GRAY, {"bits": 10, "photometric": 1}, "gray TIFF with 10 bits"),
        (GRAY, {"bits": 32, "photometric": 1}, "gray TIFF with 32 bits"),
        (GRAY, {"bits": 32, "photometric": 1, "sample_format": 3}, "floating-point"),
        (GRAY, {"bits": 8, "photometric": 1, "sample_format": 2}, "signed"),
        (COLOR, {"bits": 16, "photometric": RGB, "separate": True}, "separate planes"),
        (COLOR, {"bits": 8, "photometric": RGB, "big_endian": True, "big_tiff": True}, "big-endian BigTIFF"),
        (COLOR, {"bits": 8, "photometric": RGB, "compression": 50001}, "compression 50001"),
        (COLOR, {"bits": 16, "photometric": 8}, "Lab TIFF with 16 "),
        (COLOR, {"bits": 8, "photometric": 10}, "photometric interpretation 10"),
        (
            np.concatenate((COLOR, GRAY, ALPHA), 2),
            {"bits": 8, "photometric": CMYK, "extra": [2]},
            "CMYK TIFF",
        ),
    ],
)
def test_unsupported_tiff_is_named(values: Any, options: dict[str, Any], name: str) -> None:
    """A sound file that cannot be decoded is not called damaged."""
    with pytest.raises(UnsupportedMediaType, match=name):
        decode_image(write_tiff(values, **options), IDENTITY)


def test_tiff_without_pixels_is_invalid() -> None:
    """A directory without the positions of the pixels is damaged, not of an unsupported kind."""
    tiff = write_tiff(GRAY, 8, BLACK_IS_ZERO).replace(b"\x11\x01\x04\0", b"\x12\x01\x04\0")
    with pytest.raises(InvalidImageError):
        decode_image(tiff, IDENTITY)
