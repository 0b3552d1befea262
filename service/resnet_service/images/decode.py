"""Decode images: libjpeg-turbo for JPEG, libwebp for still WebP, Pillow for all other formats."""

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
from resnet_service.images import webp
from resnet_service.images.header_limits import baseline_jpeg_size, gif_frame_size, has_excessive_header
from resnet_service.images.preprocess import Crop, Pixels, Preprocessing

# Disabled because `max_pixels` is checked on the header of every image; Pillow's limit is global, and partly
# only a warning.
Image.MAX_IMAGE_PIXELS = None

# Pillow's warnings about metadata contain text from the image. They require no action, and Python's registry
# of warnings would keep each different text forever.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # its errors become typed errors here
with suppress(AttributeError, OSError):  # Pillow may be built without libtiff, or link it statically
    # libtiff writes errors to standard error, between the lines of the log.
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)

DEFAULT_MAX_PIXELS: Final = 50_000_000
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

_MAGIC: Final = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|BM|II[*+]\x00|MM\x00[*+]", re.DOTALL
)

# Exceptions of Pillow's decoders and of its EXIF reader on damaged files.
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

# Limits on the work that a small file can cause, far above what cameras and editors write.
_MAX_JPEG_SCANS: Final = 100  # a progressive JPEG has about 10; each costs a pass over all pixels
_MAX_METADATA_BYTES: Final = 1_000_000  # of EXIF and XMP; a JPEG has at most 64 KiB of EXIF
_MAX_ANIMATED_WEBP_PIXELS: Final = 16_000_000  # Pillow copies them: see resnet_service.images.webp
_MAX_TIFF_TILES: Final = 100_000  # more than one strip for each row of the largest image

_MIN_OVERSAMPLING: Final = 3
"""Short side of a JPEG decoded at a reduced scale, relative to the size that it is resized to. With 3 the
crop differs by 0.25 gray levels on average from that of the full-scale image, with 2 by 0.56."""

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
"""EXIF orientation -> function that rotates and mirrors the stored pixels to upright."""
_TRANSPOSED: Final = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


def decode_image(
    data: bytes | bytearray, preprocessing: Preprocessing, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Crop:
    """Decode an image file and return its center crop, [S, S, 3] uint8 RGB with S = preprocessing.crop.

    Of an animation, the first frame is used. The EXIF orientation is applied, transparency is composited on
    white, 16-bit samples are scaled to 8 bits, and gray, palette and CMYK images are converted to RGB.

    Raises UnsupportedMediaType if `data` is not in one of `FORMATS`; PayloadTooLarge if the image has more
    than `max_pixels` pixels or would take too long to decode; InvalidImageError if it cannot be decoded.
    """
    size = baseline_jpeg_size(data)
    if size is not None:
        _check_pixels(size, max_pixels)
        pixels = _decode_jpeg(data, size, preprocessing.resize)
        if pixels is not None:
            return preprocessing.resize_and_crop(pixels, size)
    image = _open(data, max_pixels)
    try:
        _check_cost(image, data, max_pixels)
        pixels = _decode(image, data, preprocessing.resize)
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
    """Read the header only; pixels are not decoded."""
    if not data:
        raise InvalidImageError("the image is empty (0 bytes)")
    if has_excessive_header(data):
        raise PayloadTooLarge("the image's header has too many parts")
    if (frame_size := gif_frame_size(data)) is not None:
        _check_pixels(frame_size, max_pixels)
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except _DECODE_ERRORS as error:
        if _MAGIC.match(data):
            raise InvalidImageError("the image's header is damaged or truncated") from error
        raise UnsupportedMediaType(f"not an image in a supported format ({', '.join(FORMATS)})") from error


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise PayloadTooLarge(f"the image has {width} x {height} pixels; the limit is {max_pixels:,} pixels")


def _check_cost(image: Image.Image, data: bytes | bytearray, max_pixels: int) -> None:
    """Raise PayloadTooLarge or UnsupportedMediaType if the header shows that decoding costs too much."""
    _check_pixels(image.size, max_pixels)
    # FF is escaped in compressed data, so this counts markers only.
    if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > _MAX_JPEG_SCANS:
        raise PayloadTooLarge(f"the JPEG has more than {_MAX_JPEG_SCANS} scans")
    if isinstance(image, TiffImageFile):
        tile = image.tag_v2.get(_TILE_WIDTH_TAG, 1) * image.tag_v2.get(_TILE_LENGTH_TAG, 1)
        if tile > max_pixels or len(image.tile) > _MAX_TIFF_TILES:
            raise PayloadTooLarge("the TIFF has too large or too many tiles")
    if image.format == "BMP" and image.info.get("compression") in (1, 2):
        # Pillow decodes it byte by byte in Python: 1 KB can take 5 seconds.
        raise UnsupportedMediaType("run-length encoded BMP is not supported")


def _decode(image: Image.Image, data: bytes | bytearray, resize: int) -> Pixels:
    """Decode to RGB with the fastest decoder for the format; Pillow supports all of them."""
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
            _check_pixels(image.size, _MAX_ANIMATED_WEBP_PIXELS)
    if isinstance(image, TiffImageFile):
        _drop_metadata(image)
    image.load()  # before the orientation is read: Pillow applies that of a TIFF here
    return np.array(_to_rgb(image))  # a copy, because torch requires writable memory


def _drop_metadata(image: TiffImageFile) -> None:
    """Remove metadata that Pillow would otherwise read completely: directories, and a large XMP."""
    if len(image.info.get("xmp", b"")) > _MAX_METADATA_BYTES:
        del image.info["xmp"]
    exif = image.getexif()
    for tag in TAGS_V2_GROUPS:
        exif.pop(tag, None)


def _decode_jpeg(data: bytes | bytearray, size: tuple[int, int], resize: int) -> Pixels | None:
    """Decode a gray or RGB JPEG of `size` (width, height) to [H, W, 3]; None if Pillow must decode it.

    A 500x375 image takes 1.2 ms with simplejpeg and 1.5 ms with Pillow. A large image is decoded at half or a
    quarter of its size if its short side stays at least `_MIN_OVERSAMPLING` times `resize`.
    """
    width, height = size
    factor = next((f for f in (4, 2) if min(size) >= _MIN_OVERSAMPLING * resize * f), 1)
    try:
        if simplejpeg.decode_jpeg_header(data)[:2] != (height, width):
            return None  # the two header parsers disagree, and the size that was checked is the other one
        pixels: Pixels = simplejpeg.decode_jpeg(
            data, min_height=-(-height // factor), min_width=-(-width // factor)
        )
    except (ValueError, MemoryError):  # Pillow is more tolerant, or reports the error
        return None
    return pixels


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's conversion clips at 255 instead of scaling.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise InvalidImageError("32-bit samples have no standard range; send 8 or 16 bits per channel")
    if image.has_transparency_data:
        rgba = _convert(image, "RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    return _convert(image, "RGB")


def _convert(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # convert() always copies


def _orientation(image: Image.Image) -> object:
    if len(image.info.get("exif", image.info.get("Raw profile type exif", ""))) > _MAX_METADATA_BYTES:
        return None  # Pillow makes an object of each number in it
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except _DECODE_ERRORS:
        # Cameras and editors write damaged EXIF around valid pixels; viewers show such an image as stored.
        return None
