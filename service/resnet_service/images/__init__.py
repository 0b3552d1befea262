"""Images: decode the bytes of an image file to the uint8 crop that a model takes.

Invalid input raises a typed error. This package does not depend on HTTP or on models, only on
`Preprocessing`.
"""

from resnet_service.images.decode import DEFAULT_MAX_PIXELS, FORMATS, decode_image
from resnet_service.images.preprocess import MAX_SIDE, Crop, Preprocessing

__all__ = ["DEFAULT_MAX_PIXELS", "FORMATS", "MAX_SIDE", "Crop", "Preprocessing", "decode_image"]
