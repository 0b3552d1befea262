"""Requests of the Open Inference Protocol that do not match the protocol or the model."""

import base64
import json
from typing import Any

import numpy as np
import pytest

from resnet_service.errors import InvalidRequestError, PayloadTooLarge
from resnet_service.server.v2.codec import ParsedRequest
from resnet_service.server.v2.json_codec import parse_request
from tests.support.v2 import (
    CROPS,
    IMAGES,
    INPUTS,
    INVALID_BINARY_DATA,
    INVALID_MESSAGES,
    MODEL,
    SIDE,
    binary_elements,
    binary_input,
    json_input,
)

MAX_IMAGES = 64
ELEMENTS = binary_elements(*IMAGES)
COUNT = CROPS.size


def parse(body: bytes, json_length: int | None = None) -> ParsedRequest:
    return parse_request(bytearray(body), json_length, MODEL, MAX_IMAGES)


def nested_lists(depth: int) -> bytes:
    return b'{"inputs": ' + b"[" * depth + b"]" * depth + b"}"


BODIES = {
    "empty": b"",
    "not JSON": b"image",
    "not an object": b"[]",
    "incomplete": b'{"inputs": [',
    "100,000 lists": nested_lists(100_000),
    "150 lists": nested_lists(150),
    "not UTF-8": b'{"id": "\xff", "inputs": []}',
    "half a surrogate pair": b'{"id": "\\ud800", "inputs": []}',
    "NaN": json.dumps({"inputs": [json_input()], "x": float("nan")}).encode(),
    "infinity": json.dumps({"inputs": [json_input("input", data=[float("-inf")] * COUNT)]}).encode(),
    "number of 5000 digits": b'{"inputs": [{"name": "image", "shape": [' + b"9" * 5000 + b"]}]}",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_invalid_json_is_rejected(body: bytes) -> None:
    """A body that is not the JSON of a request raises InvalidRequestError."""
    with pytest.raises(InvalidRequestError):
        parse(body)


@pytest.mark.parametrize("message", INVALID_MESSAGES.values(), ids=INVALID_MESSAGES)
def test_invalid_message_is_rejected(message: dict[str, Any]) -> None:
    """JSON that does not match the protocol or the model raises InvalidRequestError with a short message."""
    with pytest.raises(InvalidRequestError) as error:
        parse(json.dumps(message).encode())
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("message", "binary", "json_length"), INVALID_BINARY_DATA.values(), ids=INVALID_BINARY_DATA
)
def test_inconsistent_binary_data_is_rejected(
    message: dict[str, Any], binary: bytes, json_length: int | None
) -> None:
    """Lengths that contradict each other or the body raise InvalidRequestError."""
    encoded = json.dumps(message).encode()
    with pytest.raises(InvalidRequestError):
        parse(encoded + binary, len(encoded) if json_length is None else json_length)


@pytest.mark.parametrize("count", [65, 10**30])
def test_too_many_images_are_rejected(count: int) -> None:
    """More images than the limit raise PayloadTooLarge, however few bytes they have."""
    message = {"inputs": [json_input("image", shape=[count], data=[""] * 65)]}
    with pytest.raises(PayloadTooLarge, match="64"):
        parse(json.dumps(message).encode())


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"1," * 500_000, "values"),
        (b"[" * 200_000, "lists"),
        (b"{" * 200_000, "objects"),
        (b'":' * 50_000, "names"),
        (b"\\/" * 1_000_000, "escapes"),
    ],
    ids=["values", "lists", "objects", "names", "escapes"],
)
def test_json_that_takes_long_to_parse_is_rejected(body: bytes, name: str) -> None:
    """JSON that would block the interpreter for long raises PayloadTooLarge before it is parsed."""
    with pytest.raises(PayloadTooLarge, match=f"0 {name}"):
        parse(body)


@pytest.mark.parametrize("name", ["pixels", "input"])
def test_data_may_be_flat_or_nested(name: str) -> None:
    """Numbers in one list are the same tensor as numbers in nested lists."""
    flat, nested = (
        parse(json.dumps({"inputs": [tensor]}).encode()).images
        for tensor in (json_input(name, data=INPUTS[name][1].ravel().tolist()), json_input(name))
    )
    assert len(flat) == len(nested) == len(CROPS)
    for one, other, crop in zip(flat, nested, CROPS, strict=True):
        values = [image() if callable(image) else image for image in (one, other)]
        assert np.array_equal(values[0], values[1])
        assert np.array_equal(values[0], crop)


def test_binary_and_json_images_are_equal() -> None:
    """Images in binary are the same bytes as images in base64, in one column or in one row."""
    message = json.dumps(binary_input("image", len(ELEMENTS))).encode()
    column = json_input(shape=[3, 1], data=[[string] for string in json_input()["data"]])
    for request in (
        parse(message + ELEMENTS, len(message)),
        parse(json.dumps({"inputs": [json_input()]}).encode()),
        parse(json.dumps({"inputs": [column]}).encode()),
    ):
        assert list(request.images) == IMAGES


def test_base64_may_have_line_breaks_or_be_a_data_url() -> None:
    """Programs break lines after 76 characters or end with a line break, and browsers make data URLs."""
    strings = [base64.encodebytes(IMAGES[0]).decode(), *json_input()["data"][1:]]
    strings[1] = "data:image/jpeg;charset=x;base64," + strings[1]
    strings[2] = " \r\nDATA:;BASE64,\r\n" + base64.encodebytes(IMAGES[2]).decode().replace("\n", "\r\n")
    assert list(parse(json.dumps({"inputs": [json_input(data=strings)]}).encode()).images) == IMAGES


def test_normalized_input_is_rounded_to_gray_levels() -> None:
    """Values between gray levels, or beyond black and white, become the nearest gray level."""
    rng = np.random.default_rng(0)
    offsets = rng.uniform(-0.4, 0.4, INPUTS["input"][1].shape) / 255
    offsets /= np.reshape(MODEL.preprocessing.std, (3, 1, 1))
    moved = (INPUTS["input"][1] + offsets).astype(np.float32)
    extreme = np.full((1, 3, SIDE, SIDE), 3e38, np.float32)
    extreme[:, :, ::2] *= -1
    stripes = np.full((1, SIDE, SIDE, 3), 255, np.uint8)
    stripes[:, ::2] = 0
    for values, crops in ((moved, CROPS), (extreme, stripes)):
        tensor = json_input("input", shape=list(values.shape), data=values.tolist())
        images = parse(json.dumps({"inputs": [tensor]}).encode()).images
        assert np.array_equal([image() for image in images if callable(image)], crops)
