"""Decode an image of any supported format, for callers that are not the server."""

import atexit
from functools import cache

from resnet_service.images.jpeg import decode_jpeg
from resnet_service.images.limits import DEFAULT_MAX_PIXELS
from resnet_service.images.preprocess import Crop, Preprocessing
from resnet_service.images.sandbox import Sandbox


def decode_image(
    data: bytes | bytearray, preprocessing: Preprocessing, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Crop:
    """Decode an image file and return its center crop, [S, S, 3] uint8 RGB with S = preprocessing.crop.

    Of an animation, the first frame is used. The EXIF orientation is applied, transparency is composited on
    white, 16-bit samples are scaled to 8 bits, and gray, palette and CMYK images are converted to RGB.
    Plain JPEG is decoded in the calling thread, all other images in a sandbox that the process shares.

    Raises UnsupportedMediaType if `data` is not in one of `FORMATS`; PayloadTooLarge if the image has more
    than `max_pixels` pixels or takes too much memory or time; InvalidImageError if it cannot be decoded.
    """
    decoded = decode_jpeg(data, preprocessing, max_pixels)
    return (decoded or _shared_sandbox().decode(data, preprocessing, max_pixels)).crop


@cache
def _shared_sandbox() -> Sandbox:
    sandbox = Sandbox()
    atexit.register(sandbox.close)
    return sandbox
