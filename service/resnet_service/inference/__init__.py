"""Run models on images: `engine` for the requests of a server, `pipeline` for local files."""

from resnet_service.inference.inputs import (
    MAX_BYTES,
    ImageInput,
    discover_inputs,
    example_inputs,
)
from resnet_service.inference.pipeline import (
    ClassificationResult,
    Classifier,
    DecodedImage,
    classify_images,
    decode_all,
)

__all__ = [
    "MAX_BYTES",
    "ClassificationResult",
    "Classifier",
    "DecodedImage",
    "ImageInput",
    "classify_images",
    "decode_all",
    "discover_inputs",
    "example_inputs",
]
