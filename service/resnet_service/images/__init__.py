"""Images: decode the bytes of an image file to the uint8 crop that a model takes.

Invalid input raises a typed error. This package does not depend on HTTP or on models, only on
`Preprocessing`.
"""

from resnet_service.images.decode import decode_image
from resnet_service.images.formats import FORMATS, format_name
from resnet_service.images.jpeg import decode_jpeg
from resnet_service.images.jpeg_header import JPEG_SIGNATURE
from resnet_service.images.limits import DEFAULT_MAX_PIXELS
from resnet_service.images.preprocess import MAX_SIDE, Crop, DecodedImage, Preprocessing
from resnet_service.images.sandbox import Sandbox

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "FORMATS",
    "JPEG_SIGNATURE",
    "MAX_SIDE",
    "Crop",
    "DecodedImage",
    "Preprocessing",
    "Sandbox",
    "decode_image",
    "decode_jpeg",
    "format_name",
]
