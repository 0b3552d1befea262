"""Classify images without a server: find them, decode them in parallel, batch them, name their classes."""

from resnet_service.inference.inputs import MAX_BYTES, SUFFIXES, ImageInput, discover_inputs
from resnet_service.inference.labels import labels_from_path
from resnet_service.inference.pipeline import (
    ClassificationResult,
    Classifier,
    DecodedImage,
    classify_images,
    decode_all,
)

__all__ = [
    "MAX_BYTES",
    "SUFFIXES",
    "Classifier",
    "DecodedImage",
    "ClassificationResult",
    "ImageInput",
    "labels_from_path",
    "classify_images",
    "decode_all",
    "discover_inputs",
]
