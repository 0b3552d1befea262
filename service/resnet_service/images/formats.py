"""Decode images of every supported format with Pillow.

Damaged and hostile files can make these decoders crash, or take minutes and gigabytes. The service therefore
calls this module only in the sandbox. It does not import torch.
"""

import importlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Final

# Importing a plugin registers its format. Pillow would otherwise import all of its plugins for the first
# image of one of these formats.
from PIL import AvifImagePlugin, Image, UnidentifiedImageError, WebPImagePlugin
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from resnet_service.errors import InvalidImageError, PayloadTooLarge, ServiceError, UnsupportedMediaType
from resnet_service.images.jpeg import check_complete
from resnet_service.images.jpeg_header import END_OF_IMAGE, JPEG_SIGNATURE, unsupported_kind
from resnet_service.images.limits import check_pixels
from resnet_service.images.orientation import read_orientation, turn_image_upright
from resnet_service.images.png import PNG_SIGNATURE, composite_transparent_color, strip_png
from resnet_service.images.preprocess import DecodedImage, Preprocessing
from resnet_service.images.tiff import TIFF_SIGNATURES, check_tiff, scale_tiff

_HAS_HEIF: Final = find_spec("pillow_heif") is not None  # the extra `heif`

FORMATS: Final = (
    "JPEG",
    "PNG",
    WebPImagePlugin.WebPImageFile.format,
    "GIF",
    "BMP",
    TiffImageFile.format,
    AvifImagePlugin.AvifImageFile.format,
    *(("HEIF",) if _HAS_HEIF else ()),
)

_SIGNATURES: Final = re.compile(
    rb"(?P<jpeg>\xff\xd8\xff)|(?P<png>\x89PNG\r\n\x1a\n)|(?P<webp>RIFF....WEBP)|(?P<gif>GIF8[79]a)"
    rb"|(?P<tiff>II[*+]\0|MM\0[*+])|(?P<avif>....ftypavi[fs])|(?P<heif>....ftyp(?:he[iv][cmsx]|mif1|msf1))"
    rb"|(?P<bmp>BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0)",  # the length of a second header
    re.DOTALL,
)
UNKNOWN_FORMAT: Final = "other"
_GZIP_SIGNATURE: Final = b"\x1f\x8b"
_UNSUPPORTED_BMP: Final = "Unsupported BMP"
_UNKNOWN_LAYOUT: Final = "unknown raw mode"


def decode(data: bytes | bytearray, preprocessing: Preprocessing, max_pixels: int) -> DecodedImage:
    """Decode an image and return its upright center crop and its stored size.

    The crop is [S, S, 3] uint8 RGB with S = preprocessing.crop.
    See `resnet_service.images.decode_image` for the conversions. Raises UnsupportedMediaType,
    InvalidImageError and PayloadTooLarge (pixels or memory).
    """
    try:
        data = _prepare(data)
        image = _open(data)
        check_pixels(*image.size, max_pixels)
        rgb = _load(image, data)
        if not isinstance(image, TiffImageFile):  # Pillow has turned it
            rgb = turn_image_upright(rgb, read_orientation(image.info.get("exif")))
        return DecodedImage(preprocessing.resize_and_crop_image(rgb), *image.size)
    except MemoryError as error:
        raise PayloadTooLarge("decoding the image takes too much memory") from error


def format_name(data: bytes | bytearray) -> str:
    """Return the format that a file begins like, such as "jpeg" or "heif", or `UNKNOWN_FORMAT`."""
    match = _SIGNATURES.match(data)
    return UNKNOWN_FORMAT if match is None or match.lastgroup is None else match.lastgroup


def _prepare(data: bytes | bytearray) -> bytes | bytearray:
    """Reject kinds that cannot be decoded correctly, and return the file in a form that Pillow accepts."""
    if not data:
        raise InvalidImageError("the image is empty (0 bytes)")
    if data.startswith(_GZIP_SIGNATURE):
        raise UnsupportedMediaType("the file is compressed with gzip; send the image itself")
    if data.startswith(PNG_SIGNATURE):
        return strip_png(data)
    if data.startswith(JPEG_SIGNATURE):
        kind = unsupported_kind(data)
        if kind is not None:
            raise UnsupportedMediaType(f"{kind} is not supported; send JPEG with 8 bits per sample")
        return b"".join((data, END_OF_IMAGE))  # it can be missing in a file whose pixels are complete
    if data.startswith(TIFF_SIGNATURES):
        with _header_errors(data):
            check_tiff(data)
    return data


def _open(data: bytes | bytearray) -> Image.Image:
    """Read the header only; pixels are not decoded."""
    if _HAS_HEIF:
        _register_heif()
    with _header_errors(data):
        return Image.open(io.BytesIO(data), formats=FORMATS)


@contextmanager
def _header_errors(data: bytes | bytearray) -> Iterator[None]:
    """Pillow raises errors of many types for damaged headers."""
    try:
        yield
    except (MemoryError, ServiceError):
        raise
    except Exception as error:
        if str(error).startswith(_UNSUPPORTED_BMP):
            raise UnsupportedMediaType(f"{error}; send PNG or JPEG") from error
        if isinstance(error, UnidentifiedImageError) and data.startswith(TIFF_SIGNATURES):
            raise UnsupportedMediaType("this kind of TIFF is not supported; send PNG or JPEG") from error
        name = format_name(data)
        if name == "heif" and not _HAS_HEIF:
            raise UnsupportedMediaType("HEIC needs the service's extra `heif`; send JPEG") from error
        if name != UNKNOWN_FORMAT:
            raise InvalidImageError("the image's header is damaged or truncated") from error
        raise UnsupportedMediaType(f"not an image in a supported format ({', '.join(FORMATS)})") from error


@cache
def _register_heif() -> None:
    importlib.import_module("pillow_heif").register_heif_opener()


def _load(image: Image.Image, data: bytes | bytearray) -> Image.Image:
    """Decode the pixels, of an animation those of the first frame, and convert them to mode RGB."""
    with _pillow_errors(image):
        if isinstance(image, JpegImageFile):
            check_complete(data)
        image.load()
        if isinstance(image, TiffImageFile):
            image = scale_tiff(image)
        elif isinstance(image, PngImageFile):
            image = composite_transparent_color(image, data)
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            white = Image.new("RGB", rgba.size, "white")
            white.paste(rgba, mask=rgba)
            return white
        return image if image.mode == "RGB" else image.convert("RGB")  # convert() always copies


@contextmanager
def _pillow_errors(image: Image.Image) -> Iterator[None]:
    """Pillow raises errors of many types for damaged files: here, and only here, they are the file's."""
    try:
        yield
    except (MemoryError, ServiceError):
        raise
    except Exception as error:
        if _UNKNOWN_LAYOUT in str(error):
            message = f"this kind of {image.format} is not supported; send PNG or JPEG"
            raise UnsupportedMediaType(message) from error
        raise InvalidImageError(f"the {image.format} image cannot be decoded: {error}") from error
