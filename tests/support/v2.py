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


def _with_output(name: str, **parameters: Any) -> dict[str, Any]:
    return {"inputs": [json_input()], "outputs": [{"name": name, "parameters": parameters}]}


INVALID_MESSAGES: dict[str, dict[str, Any]] = {
    "no inputs": {},
    "zero inputs": {"inputs": []},
    "null inputs": {"inputs": None},
    "two inputs": {"inputs": [json_input("image"), json_input("pixels")]},
    "ten thousand inputs": {"inputs": [0] * 10_000},
    "no name": {"inputs": [json_input() | {"name": None}]},
    "unknown name": {"inputs": [json_input("image") | {"name": "x" * 1000}]},
    "wrong datatype": {"inputs": [json_input("image", datatype="UINT8")]},
    "unknown datatype": {"inputs": [json_input("pixels", datatype="INT4")]},
    "empty shape": {"inputs": [json_input(shape=[])]},
    "zero images": {"inputs": [json_input(shape=[0], data=[])]},
    "negative shape": {"inputs": [json_input("pixels", shape=[-1, SIDE, SIDE, 3])]},
    "shape of strings": {"inputs": [json_input(shape=["3"])]},
    "shape of fractions": {"inputs": [json_input(shape=[3.5])]},
    "shape of booleans": {"inputs": [json_input(shape=[True])]},
    "absurd side": {"inputs": [json_input("pixels", shape=[3, 10**12, 10**12, 3])]},
    "100,000 dimensions": {"inputs": [json_input("pixels", shape=[1] * 100_000)]},
    "channels first": {"inputs": [json_input("pixels", shape=[3, 3, SIDE, SIDE])]},
    "channels last": {"inputs": [json_input("input", shape=[3, SIDE, SIDE, 3])]},
    "two columns": {"inputs": [json_input(shape=[3, 2])]},
    "no data": {"inputs": [json_input(data=None)]},
    "data and binary size": {"inputs": [json_input(parameters={"binary_data_size": 0})]},
    "binary size without data": binary_input("image", 9),
    "negative binary size": binary_input("image", -1),
    "binary size as string": {"inputs": [json_input(data=None, parameters={"binary_data_size": "9"})]},
    "data as string": {"inputs": [json_input(data="abc")]},
    "data as object": {"inputs": [json_input("pixels", data={"0": 1})]},
    "too few images": {"inputs": [json_input(shape=[4])]},
    "too many images": {"inputs": [json_input(shape=[2])]},
    "not base64": {"inputs": [json_input(data=["!", "", ""])]},
    "incomplete base64": {"inputs": [json_input(data=["abc", "", ""])]},
    "data URL without base64": {"inputs": [json_input(data=["data:,abcd", "", ""])]},
    "data URL in base64": {"inputs": [json_input(data=["AAAAdata:;base64,AAAA", "", ""])]},
    "base64 beyond ASCII": {"inputs": [json_input(data=["ä", "", ""])]},
    "numbers for images": {"inputs": [json_input(data=[1, 2, 3])]},
    "too few numbers": {"inputs": [json_input("pixels", data=[0] * (CROPS.size - 1))]},
    "too many numbers": {"inputs": [json_input("input", data=[0] * (CROPS.size + 1))]},
    "ragged rows": {"inputs": [json_input("pixels", data=[*CROPS[:2].tolist(), [[[0, 0, 0]]]])]},
    "rows and numbers": {"inputs": [json_input("pixels", data=[*CROPS[:2].tolist(), 0])]},
    "rows of another shape": {"inputs": [json_input("pixels", data=CROPS.reshape(3, -1).tolist())]},
    "256": {"inputs": [json_input("pixels", data=[256] * CROPS.size)]},
    "below zero": {"inputs": [json_input("pixels", data=[-1] * CROPS.size)]},
    "fractions": {"inputs": [json_input("pixels", data=[0.5] * CROPS.size)]},
    "booleans": {"inputs": [json_input("pixels", data=[True] * CROPS.size)]},
    "strings for numbers": {"inputs": [json_input("input", data=["1"] * CROPS.size)]},
    "nulls": {"inputs": [json_input("input", data=[None] * CROPS.size)]},
    "numbers of 400 digits": {"inputs": [json_input("input", data=[10**400] * CROPS.size)]},
    "shared memory": {"inputs": [json_input(data=None, parameters={"shared_memory_region": "a"})]},
    "shared memory for an output": _with_output("label", shared_memory_region="a"),
    "unknown output": _with_output("logits"),
    "output twice": {"inputs": [json_input()], "outputs": [{"name": "label"}, {"name": "label"}]},
    "classification of labels": _with_output("label", classification=1),
    "zero classes": _with_output("probabilities", classification=0),
    "binary_data as string": _with_output("label", binary_data="yes"),
    "top_k of 0": {"inputs": [json_input()], "parameters": {"top_k": 0}},
    "top_k as string": {"inputs": [json_input()], "parameters": {"top_k": "5"}},
    "id as number": {"id": 7, "inputs": [json_input()]},
    "parameters as list": {"inputs": [json_input()], "parameters": []},
}
"""Messages in JSON that do not match the protocol or the model."""

_ELEMENTS = binary_elements(*IMAGES)
INVALID_BINARY_DATA: dict[str, tuple[dict[str, Any], bytes, int | None]] = {
    "JSON longer than the body": (binary_input("image", len(_ELEMENTS)), _ELEMENTS, 10**9),
    "no JSON": (binary_input("image", len(_ELEMENTS)), _ELEMENTS, 0),
    "end within the JSON": (binary_input("image", len(_ELEMENTS)), _ELEMENTS, 10),
    "end within the data": (binary_input("image", len(_ELEMENTS)), _ELEMENTS, 500),
    "less data": (binary_input("image", len(_ELEMENTS)), _ELEMENTS[:-1], None),
    "more data": (binary_input("image", len(_ELEMENTS)), _ELEMENTS + b"x", None),
    "unannounced data": ({"inputs": [json_input("image")]}, b"x", None),
    "element beyond the end": (binary_input("image", 6), b"\xff\xff\xff\xff12", None),
    "too few elements": (binary_input("image", 8), binary_elements(b"", b""), None),
    "too many elements": (binary_input("image", 16), binary_elements(b"", b"", b"", b""), None),
    "incomplete length": (binary_input("image", 3), b"\0\0\0", None),
    "one byte missing": (binary_input("pixels", CROPS.size - 1), b"\0" * (CROPS.size - 1), None),
    "bytes for floats": (binary_input("input", CROPS.size), b"\0" * CROPS.size, None),
}
"""Messages with binary data that contradict each other: JSON, data, and the length of the JSON."""
