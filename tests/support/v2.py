"""Requests and responses of the Open Inference Protocol, for the model cifar10."""

import base64
import json
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from resnet_service.images import decode_image
from resnet_service.models import load_model
from tests.support.images import encode, make_image

MODEL = load_model("cifar10").description
PREPROCESSING = MODEL.preprocessing
SIDE = PREPROCESSING.crop

INFER_PATH = "/v2/models/cifar10/infer"
JSON_LENGTH_HEADER = "Inference-Header-Content-Length"

IMAGES = [encode(make_image(seed=seed)) for seed in range(3)]
CROPS = np.stack([decode_image(image, PREPROCESSING) for image in IMAGES])


def normalize(crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return normalized planes, [N, 3, S, S], as a client computes them."""
    mean, std = np.array([PREPROCESSING.mean, PREPROCESSING.std], np.float32)
    values: npt.NDArray[np.float32] = ((crops.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(values)


INPUTS = {
    "image": ("BYTES", np.array(IMAGES, object)),
    "pixels": ("UINT8", CROPS),
    "input": ("FP32", normalize(CROPS)),
}
"""Datatype and values of each input, for the same three images."""


def base64_strings(*images: bytes) -> list[str]:
    return [base64.b64encode(image).decode() for image in images]


def json_input(name: str = "image", **changes: Any) -> dict[str, Any]:
    """Return a valid input in JSON with these changes; None removes a key."""
    datatype, values = INPUTS[name]
    data = base64_strings(*IMAGES) if name == "image" else values.tolist()
    changed = {"name": name, "datatype": datatype, "shape": list(values.shape), "data": data} | changes
    return {key: value for key, value in changed.items() if value is not None}


def binary_input(name: str, size: int) -> dict[str, Any]:
    """Return the JSON of a message whose only input is `size` bytes of binary data."""
    return {"inputs": [json_input(name, data=None, parameters={"binary_data_size": size})]}


def binary_elements(*images: bytes) -> bytes:
    """Return a BYTES tensor in binary."""
    return b"".join(len(image).to_bytes(4, "little") + image for image in images)


def binary_request(message: dict[str, Any], binary: bytes, json_length: str | None = None) -> dict[str, Any]:
    """Return httpx's arguments for JSON with binary data; `json_length` replaces the header's value."""
    encoded = json.dumps(message).encode()
    return {
        "content": encoded + binary,
        "headers": {JSON_LENGTH_HEADER: str(len(encoded)) if json_length is None else json_length},
    }


def error_message(response: httpx.Response, status: int) -> str:
    """Check that the response is an error of the protocol and return its message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    return str(body["error"])


def output_data(response: httpx.Response) -> dict[str, Any]:
    """Return the data of each output of a JSON response."""
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"] for output in response.json()["outputs"]}
