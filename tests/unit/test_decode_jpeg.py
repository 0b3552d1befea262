"""JPEG of every size, sampling and kind: decoded as it is, or rejected with the name of its kind."""

import io
import struct
from itertools import product
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from torchvision.transforms.v2 import functional

from load_tests.fuzz.jpeg_kinds import frame_of, jpeg_kinds, with_frame
from resnet_service.errors import InvalidImageError, PayloadTooLarge, ServiceError, UnsupportedMediaType
from resnet_service.images import Preprocessing, decode_image, decode_jpeg
from tests.support import PHOTOGRAPHS
from tests.support.images import difference, encode, make_image

IDENTITY = Preprocessing(48, 48, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SMALL = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
END = b"\xff\xd9"


def photograph(width: int, height: int) -> Image.Image:
    """Return a photograph of this size."""
    with Image.open(PHOTOGRAPHS / "astronaut.jpg") as image:
        return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def exif(orientation: int, kind: int = 3, count: int = 1) -> bytes:
    """Return EXIF data with an orientation, stored as this kind of number, `count` times."""
    value = struct.pack("<HH", orientation, orientation) if kind == 3 else bytes((orientation,) * count)
    entry = struct.pack("<HHI", 0x0112, kind, count) + value.ljust(4, b"\0")
    return b"Exif\0\0II*\0\x08\0\0\0\1\0" + entry + bytes(4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_that_is_not_a_multiple_of_the_scale_does_not_stretch_the_image(orientation: int) -> None:
    """At reduced scale, sides with any remainder modulo 8 are as near to full decoding as others."""
    differences = []
    for rest in range(8):
        stored = photograph(384 + rest, 264 + 7 * rest % 8)
        encoded = encode(stored, quality=92, exif=exif(orientation))
        with Image.open(io.BytesIO(encoded)) as image:
            upright = image.convert("RGB").transpose(TURNS[orientation]) if orientation > 1 else image.copy()
        expected = functional.center_crop(functional.resize(upright, 32, antialias=True), 32)
        differences.append(difference(decode_image(encoded, SMALL), expected))
    assert max(differences) < 0.7


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def test_what_follows_the_image_in_its_last_block_is_not_seen() -> None:
    """Two files whose pixels differ only beyond the right and lower edge have the same crop."""
    crops = []
    for outside in (0, 255):
        pixels = np.array(photograph(392, 392))
        pixels[:, 385:] = pixels[385:] = outside
        encoded = encode(Image.fromarray(pixels), subsampling=0, quality=100)
        start, _ = frame_of(encoded)
        sized = encoded[: start + 5] + struct.pack(">HH", 385, 385) + encoded[start + 9 :]
        crops.append(decode_image(sized, SMALL))
    assert difference(*crops) < 0.1


@pytest.mark.parametrize("sampling", ["444", "422", "420", "440", "411"])
def test_each_usual_sampling_is_decoded_in_a_thread(sampling: str) -> None:
    """At full and at reduced scale."""
    pixels = np.array(photograph(385, 270))
    encoded = simplejpeg.encode_jpeg(pixels, 95, colorsubsampling=sampling)
    decoded = decode_jpeg(encoded, SMALL, 10**6)
    assert decoded is not None
    assert (decoded.width, decoded.height) == (385, 270)
    resized = functional.resize(Image.fromarray(pixels), 32, antialias=True)
    assert difference(decoded.crop, functional.center_crop(resized, 32)) < 2


@pytest.mark.parametrize(("kind", "count"), [(1, 1), (3, 2), (7, 1)], ids=["byte", "twice", "undefined"])
def test_orientation_of_another_type_is_applied(kind: int, count: int) -> None:
    """Other decoders honor an orientation that is stored as a byte, or several times."""
    image = make_image(48, 48)
    encoded = encode(image, exif=exif(3, kind, count))
    assert difference(decode_image(encoded, IDENTITY), image.rotate(180)) < 8


def test_every_kind_of_frame_is_decoded_or_rejected_with_a_typed_error() -> None:
    """Each frame, precision, number of components and sampling, decoys, missing data and trailers."""
    crops = 0
    for _, data in jpeg_kinds():
        try:
            crops += decode_image(data, SMALL).shape == (32, 32, 3)
        except (InvalidImageError, PayloadTooLarge, UnsupportedMediaType):
            continue
    assert crops > 50


def test_only_plain_jpeg_is_decoded_in_a_thread() -> None:
    """Everything that could crash a decoder goes to the sandbox: other frames, precisions and samplings."""
    for mode, marker, precision in product(("L", "RGB"), range(0xC0, 0xD0), (8, 12)):
        if marker in (0xC4, 0xC8, 0xCC) or (marker in (0xC0, 0xC1, 0xC2) and precision == 8):
            continue
        encoded = with_frame(encode(make_image(48, 48, mode)), marker, precision)
        assert decode_jpeg(encoded, SMALL, 10**6) is None
    for factors in product(((1, 1), (2, 2), (4, 4), (3, 1)), repeat=3):
        if factors[1:] != ((1, 1), (1, 1)) or factors[0] in ((4, 4), (3, 1)):
            encoded = with_frame(encode(make_image(48, 48)), factors=factors)
            assert decode_jpeg(encoded, SMALL, 10**6) is None


@pytest.mark.parametrize(
    ("marker", "precision", "name"),
    [
        (0xC1, 12, "12-bit JPEG"),
        (0xC3, 16, "16-bit lossless JPEG"),
        (0xC5, 8, "hierarchical JPEG"),
        (0xCB, 8, "arithmetic-coded lossless JPEG"),
        (0xF7, 8, "JPEG-LS"),
    ],
)
def test_unsupported_kind_is_named(marker: int, precision: int, name: str) -> None:
    """A sound file that cannot be decoded is not called damaged."""
    with pytest.raises(UnsupportedMediaType, match=name):
        decode_image(with_frame(encode(make_image(48, 48)), marker, precision), IDENTITY)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_end_marker_does_not_decide_whether_pixels_are_missing(mode: str, options: dict[str, Any]) -> None:
    """A complete image without one is decoded; half an image with one was answered with a gray half."""
    encoded = encode(photograph(200, 200).convert(mode), **options)
    assert difference(decode_image(encoded[:-2], SMALL), decode_image(encoded, SMALL)) < 1  # full scale
    if "progressive" not in options:  # its first scans are complete images
        with pytest.raises(InvalidImageError, match="truncated"):
            decode_image(encoded[: len(encoded) // 2] + END, SMALL)


def test_progressive_jpeg_cut_in_its_first_scan_is_invalid() -> None:
    """With an end marker, too."""
    encoded = encode(photograph(200, 200), progressive=True)
    second = [i for i in range(len(encoded)) if encoded.startswith(b"\xff\xda", i)][1]
    with pytest.raises(InvalidImageError, match="truncated"):
        decode_image(encoded[: second // 2 + 300] + END, SMALL)


def test_trailer_does_not_count_as_scans() -> None:
    """The video of a motion photo has bytes that look like scans; the image is decoded in a thread."""
    encoded = encode(photograph(200, 200), progressive=True)
    motion_photo = encoded + 500 * (b"\0\0\0\x18ftypmp42" + b"\xff\xda" + bytes(1000))
    decoded = decode_jpeg(motion_photo, SMALL, 10**6)
    assert decoded is not None
    assert difference(decoded.crop, decode_image(encoded, SMALL)) == 0


def test_many_scans_are_not_decoded_in_a_thread() -> None:
    """A sequence of bytes that looks like an end marker, in a table between scans, hides none of them."""
    encoded = encode(photograph(64, 64), progressive=True)
    scan = encoded[encoded.rindex(b"\xff\xda") : -2]
    comment = b"\xff\xfe\0\x06" + END + b"\0\0"
    assert decode_jpeg(encoded[:-2] + 300 * (comment + scan) + END, SMALL, 10**6) is None


def test_image_cut_anywhere_raises_a_typed_error_or_decodes() -> None:
    """No cut makes the decoder raise another error than those of the service."""
    for cut in range(0, 700, 7):
        data = encode(make_image(48, 48))[:cut]
        try:
            decode_image(data, SMALL)
        except ServiceError:
            continue
