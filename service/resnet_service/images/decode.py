"""Bytes of an image -> its pixels: libjpeg-turbo for JPEG, libwebp for WebP, Pillow for all else."""

import ctypes
import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import numpy as np
import simplejpeg
from PIL import Image, _imaging
from PIL.TiffImagePlugin import TiffImageFile
from PIL.TiffTags import TAGS_V2_GROUPS

from resnet_service.errors import InvalidImageError, PayloadTooLarge, UnsupportedMediaType
from resnet_service.images import jpeg_header, webp
from resnet_service.images.header_limits import gif_frame, has_excessive_header
from resnet_service.images.preprocess import Crop, Pixels, Preprocessing

# The limit below is checked on the header of every image, so Pillow's own, which is global and
# partly only a warning, would do nothing but get in its way.
Image.MAX_IMAGE_PIXELS = None

# Pillow warns of odd metadata, in words that the image's maker chooses: nothing to act on, and each new
# wording would be remembered for ever by Python's registry of warnings.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # it logs as errors what becomes a typed error here
with suppress(AttributeError, OSError):  # a Pillow without libtiff, or with one inside itself
    # It would write the same to standard error, between the lines of the log.
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)

DEFAULT_MAX_PIXELS: Final = 50_000_000
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

_MAGIC: Final = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|BM|II[*+]\x00|MM\x00[*+]", re.DOTALL
)

# What Pillow's decoders and its EXIF reader raise on broken bytes, besides OSError.
_DECODE_ERRORS: Final = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    MemoryError,
    struct.error,
    zlib.error,
)

# Work that a few bytes can ask for, far beyond what any camera or editor writes.
_MAX_JPEG_SCANS: Final = 100  # a progressive JPEG has about 10; each costs a pass over all pixels
_MAX_EXIF_BYTES: Final = 1_000_000  # a JPEG's has 64 KiB
_MAX_COPIED_PIXELS: Final = 16_000_000  # of an animated WebP: see service.images.webp
_MAX_TIFF_TILES: Final = 100_000  # more than one strip for each row of the largest image

_MIN_OVERSAMPLING: Final = 3
"""Scaled decoding differs by 0.25 gray levels on average from decoding whole; with 2 it would be 0.56."""

_ORIENTATION_TAG: Final = 0x0112
_TILE_WIDTH_TAG: Final = 322
_TILE_LENGTH_TAG: Final = 323
_EXIF_TRANSFORMS: Final[dict[object, Callable[[Pixels], Pixels]]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}
"""EXIF orientation -> what turns the stored pixels upright."""
_TRANSPOSED: Final = (5, 6, 7, 8)


def decode_image(
    data: bytes | bytearray, preprocessing: Preprocessing, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Crop:
    """Decode an image and return its center crop, [S, S, 3] uint8 with S = preprocessing.crop.

    The first frame of an animation; upright by its EXIF orientation; transparent parts on white;
    16-bit samples scaled to 8; gray, palette and CMYK turned to RGB.

    Raises UnsupportedMediaType where the bytes are no known format, PayloadTooLarge over `max_pixels` or where
    decoding would take absurdly long, InvalidImageError where a known format cannot be decoded.
    """
    plain = jpeg_header.baseline_jpeg_size(data)
    if plain is not None:
        _check_pixels(plain, max_pixels)
        pixels = _decode_jpeg(data, plain, preprocessing.resize)
        if pixels is not None:
            return preprocessing.resize_and_crop(pixels, plain)
    image = _open(data, max_pixels)
    try:
        _check_cost(image, data, max_pixels)
        pixels = _pixels(image, data, preprocessing.resize)
        width, height = image.size
        orientation = _orientation(image)
        if orientation in _EXIF_TRANSFORMS:
            pixels = np.ascontiguousarray(_EXIF_TRANSFORMS[orientation](pixels))
            if orientation in _TRANSPOSED:
                width, height = height, width
        return preprocessing.resize_and_crop(pixels, (width, height))
    except _DECODE_ERRORS as error:
        raise InvalidImageError(f"the {image.format} image cannot be decoded: {error}") from error


def _open(data: bytes | bytearray, max_pixels: int) -> Image.Image:
    """Read the header only; no pixel is decoded here."""
    if not data:
        raise InvalidImageError("the image is empty (0 bytes)")
    if has_excessive_header(data):
        raise PayloadTooLarge("the image's header has too many parts")
    if (frame := gif_frame(data)) is not None:
        _check_pixels(frame, max_pixels)
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except _DECODE_ERRORS as error:
        if _MAGIC.match(data):
            raise InvalidImageError("the image's header is broken or cut off") from error
        raise UnsupportedMediaType(
            f"not an image in a format the service reads ({', '.join(FORMATS)})"
        ) from error


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise PayloadTooLarge(f"the image has {width} x {height} pixels; the limit is {max_pixels:,} pixels")


def _check_cost(image: Image.Image, data: bytes | bytearray, max_pixels: int) -> None:
    """Reject what would take too much memory or time, by its header and before a pixel is decoded."""
    _check_pixels(image.size, max_pixels)
    # FF is escaped in compressed data, so this finds markers only.
    if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > _MAX_JPEG_SCANS:
        raise PayloadTooLarge(f"the JPEG has more than {_MAX_JPEG_SCANS} scans")
    if isinstance(image, TiffImageFile):
        tile = image.tag_v2.get(_TILE_WIDTH_TAG, 1) * image.tag_v2.get(_TILE_LENGTH_TAG, 1)
        if tile > max_pixels or len(image.tile) > _MAX_TIFF_TILES:
            raise PayloadTooLarge("the TIFF's tiles are too large or too many")
    if image.format == "BMP" and image.info.get("compression") in (1, 2):
        # Pillow reads it byte by byte in Python: 1 KB can take 5 seconds.
        raise UnsupportedMediaType("run-length encoded BMP is not supported")


def _pixels(image: Image.Image, data: bytes | bytearray, resize: int) -> Pixels:
    """Decode, by what does so best; Pillow can do all."""
    if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
        pixels = _decode_jpeg(data, image.size, resize)
        if pixels is not None:
            return pixels
    if image.format == "WEBP":
        pixels = webp.decode(data, image.width, image.height, len(image.getbands()))
        if pixels is not None and image.mode == "RGB":
            return pixels
        if pixels is not None:
            image = Image.fromarray(pixels)
        else:
            _check_pixels(image.size, _MAX_COPIED_PIXELS)
    if isinstance(image, TiffImageFile):
        _drop_metadata(image)
    image.load()  # before the orientation is read: TIFF turns itself
    return np.array(_to_rgb(image))  # a copy, because torch wants to be able to write


def _drop_metadata(image: TiffImageFile) -> None:
    """Forget what Pillow would read all of, though nobody asks: directories, and a large XMP."""
    if len(image.info.get("xmp", b"")) > _MAX_EXIF_BYTES:
        del image.info["xmp"]
    exif = image.getexif()
    for tag in TAGS_V2_GROUPS:
        exif.pop(tag, None)


def _decode_jpeg(data: bytes | bytearray, size: tuple[int, int], resize: int) -> Pixels | None:
    """Decode a gray or RGB JPEG of (width, height); None where only Pillow can, or can say what is wrong.

    For a 500x375 image libjpeg-turbo needs 1.2 ms through simplejpeg, 1.5 through Pillow. A large one is
    decoded to a half or a quarter, as long as its short side stays _MIN_OVERSAMPLING times `resize`.
    """
    width, height = size
    factor = next((f for f in (4, 2) if min(size) >= _MIN_OVERSAMPLING * resize * f), 1)
    try:
        if simplejpeg.decode_jpeg_header(data)[:2] != (height, width):
            return None  # two readers, two headers: the first one's is the one that was checked
        pixels: Pixels = simplejpeg.decode_jpeg(
            data, min_height=-(-height // factor), min_width=-(-width // factor)
        )
    except (ValueError, MemoryError):  # stricter than Pillow, which knows what other programs write
        return None
    return pixels


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise InvalidImageError("32-bit samples have no agreed range; send 8 or 16 bits a channel")
    if image.has_transparency_data:
        rgba = _converted(image, "RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    return _converted(image, "RGB")


def _converted(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # which would copy it


def _orientation(image: Image.Image) -> object:
    if len(image.info.get("exif", image.info.get("Raw profile type exif", ""))) > _MAX_EXIF_BYTES:
        return None  # each number of it would become an object
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except _DECODE_ERRORS:
        # Cameras and editors write broken EXIF around sound pixels; viewers show those as stored.
        return None
