"""Bytes of an image -> the uint8 crop that a model takes.

Every bad input is a typed error. Knows no HTTP and no model: only what `Preprocessing` says.
"""

from resnet_service.images.decode import DEFAULT_MAX_PIXELS, FORMATS, decode_image
from resnet_service.images.preprocess import MAX_SIDE, Crop, Preprocessing

__all__ = ["DEFAULT_MAX_PIXELS", "FORMATS", "MAX_SIDE", "Crop", "Preprocessing", "decode_image"]
