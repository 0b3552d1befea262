"""Bytes of a picture -> the uint8 crop that a model takes.

Every bad input is a typed error. Knows no HTTP and no model: only what `Preprocessing` says.
"""

from service.images.decoding import DEFAULT_MAX_PIXELS, FORMATS, decode
from service.images.preprocessing import MAX_SIDE, Crop, Preprocessing

__all__ = ["DEFAULT_MAX_PIXELS", "FORMATS", "MAX_SIDE", "Crop", "Preprocessing", "decode"]
