"""What the model takes and gives, as the protocol sees it."""

from typing import Final

from resnet_service.models import Model
from resnet_service.server.v2.schemas import TensorMetadata

VERSION: Final = "1"
"""The only version of the one model."""

IMAGE: Final = "image"
PIXELS: Final = "pixels"
INPUT: Final = "input"

PROBABILITIES: Final = "probabilities"
CLASS_ID: Final = "class_id"
LABEL: Final = "label"
PROBABILITY: Final = "probability"


def inputs(model: Model) -> dict[str, TensorMetadata]:
    """Return the inputs by name; a request has one of them."""
    side = model.preprocessing.crop
    images = _optional("images in files, as JPEG or PNG; in JSON as base64")
    crops = _optional("RGB images, resized and cropped")
    normalized = _optional("RGB planes, resized, cropped and normalized; rounded to whole gray levels")
    declared = (
        TensorMetadata(name=IMAGE, datatype="BYTES", shape=[-1], parameters=images),
        TensorMetadata(name=PIXELS, datatype="UINT8", shape=[-1, side, side, 3], parameters=crops),
        TensorMetadata(name=INPUT, datatype="FP32", shape=[-1, 3, side, side], parameters=normalized),
    )
    return {tensor.name: tensor for tensor in declared}


def outputs(model: Model) -> dict[str, TensorMetadata]:
    """Return the outputs by name: all probabilities in the order of the classes, and the best classes."""
    declared = (
        TensorMetadata(name=PROBABILITIES, datatype="FP32", shape=[-1, len(model.labels)]),
        TensorMetadata(name=CLASS_ID, datatype="INT64", shape=[-1, -1]),
        TensorMetadata(name=LABEL, datatype="BYTES", shape=[-1, -1]),
        TensorMetadata(name=PROBABILITY, datatype="FP32", shape=[-1, -1]),
    )
    return {tensor.name: tensor for tensor in declared}


def _optional(content: str) -> dict[str, bool | str]:
    return {"optional": True, "content": content}
