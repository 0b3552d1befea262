"""Decoding: what is accepted, what it becomes, and that every bad input is a typed error."""

import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import PREFIXES
from torchvision.models import ResNet50_Weights, ViT_H_14_Weights

from load_tests import decompression_bombs as bombs
from resnet_service.errors import InvalidImageError, PayloadTooLarge, ServiceError, UnsupportedMediaType
from resnet_service.images import Preprocessing, decode_image, webp
from tests.support.images import bomb, chunk, difference, encode, make_image, transformed

SMALL = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
EXACT = Preprocessing(48, 48, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""For images of 48x48: the crop is the image."""


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_reads_every_format(format: str) -> None:  # noqa: A002
    """Each format gives the image, within the loss of its codec."""
    image = make_image(48, 48)
    crop = decode_image(encode(image, format), EXACT)
    assert crop.shape == (48, 48, 3)
    assert crop.dtype == np.uint8
    assert difference(crop, image) < 8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_reads_every_png_mode(mode: str) -> None:
    """Gray, gray with alpha, palette and color with alpha all become the RGB that a viewer shows."""
    image = make_image(48, 48, mode)
    assert difference(decode_image(encode(image, "PNG"), EXACT), image.convert("RGB")) == 0


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_reads_cmyk(format: str) -> None:  # noqa: A002
    """CMYK becomes the RGB it was made from, within JPEG's loss: not its negative."""
    image = make_image(48, 48)
    assert difference(decode_image(encode(image.convert("CMYK"), format), EXACT), image) < 8


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_scales_16_bit_samples(format: str) -> None:  # noqa: A002
    """16-bit gray is scaled to 8 bits, not clipped at white."""
    gray = np.asarray(make_image(48, 48, "L"))
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    assert difference(decode_image(encode(deep, format), EXACT)[:, :, 0], gray) == 0


def test_transparent_parts_are_white() -> None:
    """What shows through is white paper, whatever color hides under the transparency."""
    assert decode_image(encode(Image.new("RGBA", (48, 48), (255, 0, 0, 0)), "PNG"), EXACT).min() == 255


def test_a_transparent_palette_entry_is_white() -> None:
    """A palette image's transparent index shows white as well."""
    image = Image.new("P", (48, 48), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    assert decode_image(encode(image, "PNG", transparency=1), EXACT).min() == 255


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 50}, {"save_all": True}])
def test_webp_is_what_pillow_reads(mode: str, options: dict[str, Any]) -> None:
    """Still or animated, plain or with transparency, WebP has the same pixels as with Pillow, on white."""
    image = make_image(48, 48, mode)
    if mode == "RGBA":
        image.putalpha(make_image(48, 48, "L", seed=1))
    animated = "save_all" in options
    if animated:
        options["append_images"] = [image.transpose(Image.Transpose.ROTATE_90)]
    written = encode(image, "WEBP", **options)
    assert (webp.decode(written, 48, 48, len(mode)) is None) == animated  # still ones take the short way
    with Image.open(io.BytesIO(written)) as read:
        assert (read.mode, getattr(read, "n_frames", 1) > 1) == (mode, animated)
        shown = Image.new("RGBA", read.size, "white")
        shown.alpha_composite(read.convert("RGBA"))
    assert np.abs(decode_image(written, EXACT).astype(int) - np.asarray(shown.convert("RGB"))).max() <= 1


def test_takes_the_first_frame() -> None:
    """Of an animation the first frame counts."""
    frames = [Image.new("RGB", (48, 48), color) for color in ("red", "blue")]
    crop = decode_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), EXACT)
    assert difference(crop, frames[0]) < 1


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "I;16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turns_upright_by_exif(orientation: int, mode: str) -> None:
    """An image stored in any of the eight EXIF orientations comes out as it was taken, in every mode."""
    upright = make_image(48, 48, "L" if mode == "I;16" else mode)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    if mode == "I;16":
        stored = Image.fromarray(np.asarray(stored).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = encode(stored, "PNG", exif=exif)
    assert difference(decode_image(image, EXACT), upright.convert("RGB")) == 0


def exif_with(tag: int, kind: int, value: bytes) -> bytes:
    """Make EXIF that says "stored upside down" (3) and has one more tag, of any type and value."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 3, 0) + struct.pack("<HHI4s", tag, kind, 1, value)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + struct.pack("<I", 0)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0nonsense",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*",
        exif_with(0x0131, 11, struct.pack("<f", 1.5)),  # Software as a float
        exif_with(0x011A, 2, b"abc\0"),  # XResolution as text
    ],
)
def test_absurd_exif_is_no_obstacle(exif: bytes) -> None:
    """Sound pixels with broken EXIF are shown, upright where the orientation can still be read."""
    image = make_image(48, 48)
    crop = decode_image(encode(image, exif=exif), EXACT)
    assert min(difference(crop, image), difference(crop, image.rotate(180))) < 8


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (31, 33), (33, 31)])
def test_any_shape_gives_the_crop(size: tuple[int, int]) -> None:
    """Tiny and extreme shapes are enlarged and cropped like any other."""
    assert decode_image(encode(make_image(*size), "PNG"), SMALL).shape == (32, 32, 3)


@pytest.mark.parametrize("weights", [ResNet50_Weights.IMAGENET1K_V1, ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1])
def test_equals_the_transforms_of_the_published_weights(weights: Any, real_images: Path) -> None:
    """On real photographs a crop is within 1 gray level of torchvision's own, bilinear and bicubic."""
    transform = weights.transforms()
    preprocessing = Preprocessing(
        transform.resize_size[0], transform.crop_size[0], (0, 0, 0), (1, 1, 1), transform.interpolation.value
    )
    means = [
        difference(decode_image(path.read_bytes(), preprocessing), transformed(path.read_bytes(), transform))
        for path in [*sorted((real_images / "imagenet-sample").glob("*.JPEG")), real_images / "dog.jpg"]
    ]
    assert max(means) < 0.5
    assert np.mean(means) < 0.02


@pytest.mark.parametrize("resize", [128, 64])
def test_a_large_jpeg_decoded_small_equals_the_transforms(resize: int, real_images: Path) -> None:
    """DecodedImage to a half or a quarter, a photograph stays within 1 gray level on average."""
    transform = ResNet50_Weights.IMAGENET1K_V1.transforms(resize_size=resize, crop_size=resize)
    image = (real_images / "dog.jpg").read_bytes()
    crop = decode_image(image, Preprocessing(resize, resize, (0, 0, 0), (1, 1, 1)))
    assert difference(crop, transformed(image, transform)) < 1


@pytest.mark.parametrize("subsampling", [0, 1, 2, -1])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"keep_rgb": True, "subsampling": 0}])
def test_every_kind_of_jpeg_becomes_the_pixels_that_pillow_shows(
    subsampling: int, options: dict[str, Any]
) -> None:
    """Chroma at any resolution, progressive, or RGB as it is: the same pixels, to the bit."""
    encoded = encode(make_image(48, 48), **{"subsampling": subsampling, **options})
    with Image.open(io.BytesIO(encoded)) as image:
        assert difference(decode_image(encoded, EXACT), image) == 0


def test_text_is_unsupported() -> None:
    """Bytes of no image format are UnsupportedMediaType, whatever their name or type claims."""
    with pytest.raises(UnsupportedMediaType, match="JPEG"):
        decode_image(b"This is not an image. " * 100, SMALL)


def test_empty_is_invalid() -> None:
    """No bytes at all are an invalid image that says so."""
    with pytest.raises(InvalidImageError, match="empty"):
        decode_image(b"", SMALL)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_image_is_a_typed_error(format: str) -> None:  # noqa: A002
    """Cut off at every 16th byte, an image is a typed error or (GIF's trailer) still an image."""
    whole = encode(make_image(), format)
    for length in range(1, len(whole) - 8, 16):
        with suppress(InvalidImageError, UnsupportedMediaType, PayloadTooLarge):
            assert decode_image(whole[:length], SMALL).shape == (32, 32, 3)


def test_a_truncated_jpeg_is_invalid() -> None:
    """Half a JPEG is InvalidImageError, not an image with a gray half."""
    jpeg = encode(make_image(640, 480))
    with pytest.raises(InvalidImageError, match="truncated"):
        decode_image(jpeg[: len(jpeg) // 2], SMALL)


@pytest.mark.parametrize("value", [0x00, 0x7F, 0xFF])
def test_a_garbled_jpeg_header_is_a_typed_error_or_an_image(value: int) -> None:
    """Whatever a byte of its header is changed to, a JPEG never leaves the error tree."""
    whole = encode(make_image())
    for place in range(whole.index(b"\xff\xda") + 14):
        garbled = bytearray(whole)
        garbled[place] = value
        with suppress(ServiceError):
            assert decode_image(garbled, SMALL).shape == (32, 32, 3)


@pytest.mark.parametrize("seed", range(20))
def test_flipped_bits_are_a_typed_error_or_an_image(seed: int, jpeg: bytes) -> None:
    """Damage anywhere in the file never leaves the error tree."""
    random = np.random.default_rng(seed)
    for original in (jpeg, encode(make_image(), "PNG"), encode(make_image(), "TIFF")):
        damaged = np.frombuffer(original, np.uint8).copy()
        damaged[random.integers(0, len(damaged), 8)] ^= random.integers(1, 256, 8, dtype=np.uint8)
        with suppress(ServiceError):
            assert decode_image(damaged.tobytes(), SMALL).shape == (32, 32, 3)


def test_a_bomb_is_rejected_by_its_header() -> None:
    """A 30,000 x 30,000 PNG is PayloadTooLarge before a pixel is decoded."""
    image = bomb(30_000, 30_000)
    assert len(image) < 200_000
    with pytest.raises(PayloadTooLarge, match="30000 x 30000"):
        decode_image(image, SMALL)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_a_thousand_scans_is_rejected(progressive: bool) -> None:
    """Each scan of a JPEG may cost a pass over all pixels, so their number is bounded."""
    whole = encode(make_image(64, 64), "JPEG", progressive=progressive)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    with pytest.raises(PayloadTooLarge, match="scans"):
        decode_image(whole[:-2] + 1000 * scan + whole[-2:], SMALL)


def long_winded(format: str, parts: int, part: bytes) -> bytes:  # noqa: A002
    """Return a small image with so many of these parts in its header."""
    whole = encode(make_image(48, 48), format)
    end = {"JPEG": 2, "PNG": 33, "GIF": 13 + 768, "WEBP": len(whole)}[format]
    return whole[:end] + parts * part + whole[end:]


PROFILE = b"\xff\xe2\0\x11ICC_PROFILE\0\1\1p"


@pytest.mark.parametrize(
    ("format", "parts", "part"),
    [
        ("JPEG", 2_001, PROFILE),
        ("JPEG", 60_000, b"\xff"),
        ("JPEG", 30_000, b"\xff\xd0"),
        ("JPEG", 60_000, b"\0"),
        ("PNG", 50_000, chunk(b"teSt", b"")),
        ("PNG", 5, chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**20)))),
        ("GIF", 20_000, b"!\xfe\1c\0"),
        ("GIF", 20_000, b"\0"),
        ("JPEG", 2, b"\xff\xc0\0\x0b\x08\0\1\0\1\1\1\x11\0"),
        ("WEBP", 50_000, b"teSt\0\0\0\0"),
    ],
)
def test_an_endless_header_is_rejected(format: str, parts: int, part: bytes) -> None:  # noqa: A002
    """Pillow reads a header part by part in Python, so an image of 20 MB could cost a minute or 700 MB."""
    with pytest.raises(PayloadTooLarge, match="parts"):
        decode_image(long_winded(format, parts, part), SMALL)


@pytest.mark.parametrize(
    ("format", "parts", "part"),
    [
        ("JPEG", 255, PROFILE),
        ("JPEG", 1_000, b"\xff"),
        ("PNG", 40_000, chunk(b"teSt", b"")),
        ("PNG", 2, chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(100)))),
        ("GIF", 5_000, b"!\xfe\1c\0"),
    ],
)
def test_a_long_header_is_read(format: str, parts: int, part: bytes) -> None:  # noqa: A002
    """What programs write, and more than that, is no obstacle."""
    assert difference(decode_image(long_winded(format, parts, part), EXACT), make_image(48, 48)) < 8


@pytest.mark.parametrize("begin", PREFIXES)
@pytest.mark.parametrize(
    ("tag", "kind", "count"),
    [
        (258, 5, 300_001),
        (274, 3, 300_001),
        (65_000, 12, 10**6),
        *((t, 1, 300_001) for t in (273, 320, 338, 339)),
    ],
)
def test_a_tiff_of_endless_values_is_rejected(begin: bytes, tag: int, kind: int, count: int) -> None:
    """Each number of its tags would become an object, so one of 20 MB could cost ten seconds, or 4 GB."""
    order = "<" if begin.startswith(b"II") else ">"
    big = begin == b"II+\0"  # Pillow reads the other byte order's as if it were small
    tags = {**bombs.tiff_tags(48, 48, 64), tag: (kind, count, 8)}
    entry, sizes = ("HHQQ", "HHQQ") if big else ("HHI", "IH")
    header = struct.pack(f"{order}{sizes}", *((8, 0, 16, len(tags)) if big else (8, len(tags))))
    entries = (struct.pack(f"{order}{entry}{'' if big else 'I'}", key, *tags[key]) for key in sorted(tags))
    with pytest.raises(PayloadTooLarge, match="parts"):
        decode_image(begin + header + b"".join(entries) + bytes(64), EXACT)


def test_a_tiff_of_many_tags_is_rejected() -> None:
    """BigTIFF counts its tags with 64 bits."""
    tags = struct.pack("<4sHHQQ", b"II+\0", 8, 0, 16, 2**63) + bytes(2_000_000)
    with pytest.raises(PayloadTooLarge, match="parts"):
        decode_image(tags, EXACT)


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_many_strips_is_read(big: bool) -> None:
    """A strip for each row, a preview and a profile of a megabyte are no obstacle; nor is BigTIFF."""
    image = make_image(48, 48)
    profile = {34675: bytes(10**6), 37724: bytes(10**6)}
    written = encode(image, "TIFF", strip_size=1, tiffinfo=profile, big_tiff=big)
    assert difference(decode_image(written, EXACT), image) == 0


def exif(values: int) -> bytes:
    """Return EXIF whose orientation is so many fractions, each of which says that it lies on its side."""
    directory = struct.pack("<IHHHIII", 8, 1, 274, 5, values, 26, 0)
    return b"II*\0" + directory + struct.pack("<II", 6, 1) * values


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(("values", "turned"), [(1, True), (130_000, False)])
def test_endless_exif_is_not_read(raw: bool, values: int, turned: bool) -> None:
    """What would become millions of objects says nothing of where the top is; the image is read."""
    image = make_image(48, 48)
    whole = encode(image, "PNG")
    text = f"Raw profile type exif\0\nexif\n{8 * values}\n{exif(values).hex()}"
    added = chunk(b"tEXt", text.encode()) if raw else chunk(b"eXIf", exif(values))
    expected = image.transpose(Image.Transpose.ROTATE_270) if turned else image
    assert difference(decode_image(whole[:33] + added + whole[33:], EXACT), expected) == 0


def test_a_tiffs_other_directories_are_not_read() -> None:
    """EXIF and the place have no limit of their own, and nobody asks for them; the image is read."""
    whole = bombs.tiff_directories(1)
    assert difference(decode_image(whole, EXACT), Image.new("RGB", (48, 48))) == 0


def test_a_sideways_tiff_with_endless_xmp_is_turned() -> None:
    """Pillow would search it several times, while nobody else gets a turn."""
    image = make_image(48, 48)
    xmp = b'<x tiff:Orientation="1"/>' * 100_000
    whole = encode(image, "TIFF", tiffinfo={274: 6, 700: xmp})
    assert difference(decode_image(whole, EXACT), image.transpose(Image.Transpose.ROTATE_270)) == 0


@pytest.mark.parametrize("disposal", [2, 3])
def test_a_frame_larger_than_its_gif_counts(disposal: int) -> None:
    """Pillow fills the frame while it reads the header: 43 bytes could take 4 GB."""
    control = bytes([0x21, 0xF9, 4, disposal << 2 | 1, 0, 0, 0, 0])
    frame = b",\0\0\0\0" + struct.pack("<HH", 9_000, 9_000) + b"\0\2\0;"
    with pytest.raises(PayloadTooLarge, match="9000 x 9000"):
        decode_image(b"GIF89a\1\0\1\0\0\0\0" + control + frame, SMALL)


def test_a_large_animated_webp_is_rejected() -> None:
    """Pillow copies its whole first frame while nobody else gets a turn; 200 bytes are enough for one."""
    assert decode_image(bombs.webp_in_a_corner(100, 100), SMALL).shape == (32, 32, 3)
    with pytest.raises(PayloadTooLarge, match="16,000,000"):
        decode_image(bombs.webp_in_a_corner(5000, 4000), SMALL)


def test_a_jpeg_of_endless_exif_is_rejected() -> None:
    """Pillow reads all segments of EXIF as one."""
    segment = b"\xff\xe1" + struct.pack(">H", 2 + 6 + 60_000) + b"Exif\0\0" + bytes(60_000)
    with pytest.raises(PayloadTooLarge, match="parts"):
        decode_image(long_winded("JPEG", 17, segment), SMALL)


def test_a_broken_tiff_says_nothing_beside_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    """What is wrong with an image is in the error, and not in lines that libtiff writes by itself."""
    whole = encode(make_image(), "TIFF", compression="tiff_adobe_deflate")
    broken = bytearray(whole)
    broken[8:200] = b"\xff" * 192
    with pytest.raises(InvalidImageError):
        decode_image(broken, SMALL)
    assert capfd.readouterr() == ("", "")


def test_a_tiff_of_one_huge_tile_is_rejected() -> None:
    """A TIFF's tiles may be larger than its image; they are held to the same limit."""
    tags = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: 45008, 323: 45008, 324: 8, 325: 8}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    tiff = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    with pytest.raises(PayloadTooLarge, match="tiles"):
        decode_image(tiff, SMALL)


def test_a_run_length_encoded_bmp_is_rejected() -> None:
    """Pillow expands it byte by byte in Python, so a kilobyte could cost seconds."""
    header = struct.pack("<IiiHHIIiiII", 40, 50_000_000, 1, 1, 8, 1, 2, 0, 0, 256, 0)
    bmp = (
        b"BM"
        + struct.pack("<IHHI", 14 + 40 + 1024 + 2, 0, 0, 14 + 40 + 1024)
        + header
        + bytes(1024)
        + b"\0\1"
    )
    with pytest.raises(UnsupportedMediaType, match="run-length"):
        decode_image(bmp, SMALL)


def test_an_elongated_image_for_a_bicubic_model() -> None:
    """20,000 x 1 pixels resized whole would be 10 million wide; only the crop is computed."""
    bicubic = Preprocessing(518, 518, (0, 0, 0), (1, 1, 1), "bicubic")
    assert decode_image(encode(Image.new("1", (20_000, 1)), "PNG"), bicubic).shape == (518, 518, 3)


def test_a_palette_image_without_its_palette_is_a_typed_error() -> None:
    """A PNG that says palette and has none is invalid."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(20))) + chunk(b"IEND", b"")
    with suppress(InvalidImageError):
        assert decode_image(b"\x89PNG\r\n\x1a\n" + header + body, SMALL).shape == (32, 32, 3)


def test_sound_is_no_broken_image() -> None:
    """A WAV file starts like WebP does, and is unsupported all the same."""
    with pytest.raises(UnsupportedMediaType):
        decode_image(b"RIFF\x24\0\0\0WAVEfmt " + bytes(100), SMALL)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_the_pixel_limit_is_exact(format: str) -> None:  # noqa: A002
    """An image of exactly the limit passes; one row more does not."""
    assert decode_image(encode(make_image(100, 10), format), SMALL, max_pixels=1000).shape == (32, 32, 3)
    with pytest.raises(PayloadTooLarge):
        decode_image(encode(make_image(100, 11), format), SMALL, max_pixels=1000)


def test_other_formats_of_pillow_stay_closed() -> None:
    """Formats that Pillow could open but the service does not promise (here PPM) are unsupported."""
    with pytest.raises(UnsupportedMediaType):
        decode_image(encode(make_image(), "PPM"), SMALL)


def test_float_samples_are_rejected() -> None:
    """32-bit samples have no agreed range, so they are an error instead of a guess."""
    buffer = io.BytesIO()
    Image.new("F", (48, 48), 0.5).save(buffer, "TIFF")
    with pytest.raises(InvalidImageError, match="32-bit"):
        decode_image(buffer.getvalue(), SMALL)


@pytest.mark.parametrize(
    "values",
    [
        {"resize": 10, "crop": 11},
        {"resize": 0, "crop": 0},
        {"resize": 10, "crop": 10, "std": (1.0, 0.0, 1.0)},
    ],
)
def test_impossible_preprocessing_is_rejected(values: dict[str, object]) -> None:
    """A checkpoint cannot ask for a crop larger than the image or a division by zero."""
    with pytest.raises(ValueError, match=r"crop|std"):
        Preprocessing(**{"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), **values})  # type: ignore[arg-type]
