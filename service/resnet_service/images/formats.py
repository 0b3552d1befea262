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

import numpy as np

# Importing a plugin registers its format. Pillow would otherwise import all of its plugins for the first
# image of one of these formats.
from PIL import AvifImagePlugin, Image, TiffImagePlugin, WebPImagePlugin

from resnet_service.errors import InvalidImageError, PayloadTooLarge, ServiceError, UnsupportedMediaType
from resnet_service.images.limits import check_pixels
from resnet_service.images.orientation import read_orientation, turn_image_upright
from resnet_service.images.preprocess import Crop, Preprocessing

_HAS_HEIF: Final = find_spec("pillow_heif") is not None  # the extra `heif`

FORMATS: Final = (
    "JPEG",
    "PNG",
    WebPImagePlugin.WebPImageFile.format,
    "GIF",
    "BMP",
    TiffImagePlugin.TiffImageFile.format,
    AvifImagePlugin.AvifImageFile.format,
    *(("HEIF",) if _HAS_HEIF else ()),
)

_SIGNATURES: Final = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|BM|II[*+]\0|MM\0[*+]|....ftypavi[fs]", re.DOTALL
)
_HEIF_SIGNATURE: Final = re.compile(rb"....ftyp(he[iv][cmsx]|mif1|msf1)", re.DOTALL)


def decode(data: bytes | bytearray, preprocessing: Preprocessing, max_pixels: int) -> Crop:
    """Decode an image and return its upright center crop, [S, S, 3] uint8 RGB with S = preprocessing.crop.

    See `resnet_service.images.decode_image` for the conversions. Raises UnsupportedMediaType,
    InvalidImageError and PayloadTooLarge (pixels or memory).
    """
    try:
        image = _open(data)
        check_pixels(*image.size, max_pixels)
        upright = turn_image_upright(_load(image), _orientation(image))
        return preprocessing.resize_and_crop_image(upright)
    except MemoryError as error:
        raise PayloadTooLarge("decoding the image takes too much memory") from error


def _open(data: bytes | bytearray) -> Image.Image:
    """Read the header only; pixels are not decoded."""
    if not data:
        raise InvalidImageError("the image is empty (0 bytes)")
    if _HAS_HEIF:
        _register_heif()
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises errors of many types for damaged headers
        if not _HAS_HEIF and _HEIF_SIGNATURE.match(data):
            raise UnsupportedMediaType("HEIC needs the service's extra `heif`; send JPEG") from error
        if _SIGNATURES.match(data) or _HEIF_SIGNATURE.match(data):
            raise InvalidImageError("the image's header is damaged or truncated") from error
        raise UnsupportedMediaType(f"not an image in a supported format ({', '.join(FORMATS)})") from error


@cache
def _register_heif() -> None:
    importlib.import_module("pillow_heif").register_heif_opener()


def _load(image: Image.Image) -> Image.Image:
    """Decode the pixels, of an animation those of the first frame, and convert them to mode RGB."""
    with _pillow_errors(image):
        image.load()
    if image.mode.startswith("I;16"):
        # Pillow's conversion clips at 255 instead of scaling.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InvalidImageError("32-bit samples have no standard range; send 8 or 16 bits per channel")
    with _pillow_errors(image):
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            white = Image.new("RGB", rgba.size, "white")
            white.paste(rgba, mask=rgba)
            return white
        return image if image.mode == "RGB" else image.convert("RGB")  # convert() always copies


def _orientation(image: Image.Image) -> int:
    """Read the orientation after the pixels have been loaded: Pillow applies that of a TIFF then."""
    try:
        return read_orientation(image.getexif()) or 1
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001
        # Pillow raises errors of many types for damaged EXIF, which cameras and editors write around valid
        # pixels. Viewers show such an image as stored.
        return 1


@contextmanager
def _pillow_errors(image: Image.Image) -> Iterator[None]:
    """Pillow raises errors of many types for damaged files: here, and only here, they are the file's."""
    try:
        yield
    except (MemoryError, ServiceError):
        raise
    except Exception as error:
        raise InvalidImageError(f"the {image.format} image cannot be decoded: {error}") from error
