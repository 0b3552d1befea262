"""Requests of the Open Inference Protocol that do not match the protocol or the model."""

import base64
import json
from typing import Any

import numpy as np
import pytest

from resnet_service.errors import InvalidRequestError, PayloadTooLarge
from resnet_service.server.v2.codec import ParsedRequest, parse_request
from tests.support.v2 import (
    CROPS,
    IMAGES,
    INPUTS,
    MODEL,
    SIDE,
    binary_elements,
    binary_input,
    json_input,
)

MAX_IMAGES = 64
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


def with_output(name: str, **parameters: Any) -> dict[str, Any]:
    return {"inputs": [json_input()], "outputs": [{"name": name, "parameters": parameters}]}


MESSAGES: dict[str, dict[str, Any]] = {
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
    "too few numbers": {"inputs": [json_input("pixels", data=[0] * (COUNT - 1))]},
    "too many numbers": {"inputs": [json_input("input", data=[0] * (COUNT + 1))]},
    "ragged rows": {"inputs": [json_input("pixels", data=[*CROPS[:2].tolist(), [[[0, 0, 0]]]])]},
    "rows and numbers": {"inputs": [json_input("pixels", data=[*CROPS[:2].tolist(), 0])]},
    "rows of another shape": {"inputs": [json_input("pixels", data=CROPS.reshape(3, -1).tolist())]},
    "256": {"inputs": [json_input("pixels", data=[256] * COUNT)]},
    "below zero": {"inputs": [json_input("pixels", data=[-1] * COUNT)]},
    "fractions": {"inputs": [json_input("pixels", data=[0.5] * COUNT)]},
    "booleans": {"inputs": [json_input("pixels", data=[True] * COUNT)]},
    "strings for numbers": {"inputs": [json_input("input", data=["1"] * COUNT)]},
    "nulls": {"inputs": [json_input("input", data=[None] * COUNT)]},
    "numbers of 400 digits": {"inputs": [json_input("input", data=[10**400] * COUNT)]},
    "shared memory": {"inputs": [json_input(data=None, parameters={"shared_memory_region": "a"})]},
    "shared memory for an output": with_output("label", shared_memory_region="a"),
    "unknown output": with_output("logits"),
    "output twice": {"inputs": [json_input()], "outputs": [{"name": "label"}, {"name": "label"}]},
    "classification of labels": with_output("label", classification=1),
    "zero classes": with_output("probabilities", classification=0),
    "binary_data as string": with_output("label", binary_data="yes"),
    "top_k of 0": {"inputs": [json_input()], "parameters": {"top_k": 0}},
    "top_k as string": {"inputs": [json_input()], "parameters": {"top_k": "5"}},
    "id as number": {"id": 7, "inputs": [json_input()]},
    "parameters as list": {"inputs": [json_input()], "parameters": []},
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_invalid_message_is_rejected(message: dict[str, Any]) -> None:
    """JSON that does not match the protocol or the model raises InvalidRequestError with a short message."""
    with pytest.raises(InvalidRequestError) as error:
        parse(json.dumps(message).encode())
    assert len(str(error.value)) < 300


ELEMENTS = binary_elements(*IMAGES)
BINARY_DATA: dict[str, tuple[dict[str, Any], bytes, int | None]] = {
    "JSON longer than the body": (binary_input("image", len(ELEMENTS)), ELEMENTS, 10**9),
    "no JSON": (binary_input("image", len(ELEMENTS)), ELEMENTS, 0),
    "end within the JSON": (binary_input("image", len(ELEMENTS)), ELEMENTS, 10),
    "end within the data": (binary_input("image", len(ELEMENTS)), ELEMENTS, 500),
    "less data": (binary_input("image", len(ELEMENTS)), ELEMENTS[:-1], None),
    "more data": (binary_input("image", len(ELEMENTS)), ELEMENTS + b"x", None),
    "unannounced data": ({"inputs": [json_input("image")]}, b"x", None),
    "element beyond the end": (binary_input("image", 6), b"\xff\xff\xff\xff12", None),
    "too few elements": (binary_input("image", 8), binary_elements(b"", b""), None),
    "too many elements": (binary_input("image", 16), binary_elements(b"", b"", b"", b""), None),
    "incomplete length": (binary_input("image", 3), b"\0\0\0", None),
    "one byte missing": (binary_input("pixels", COUNT - 1), b"\0" * (COUNT - 1), None),
    "bytes for floats": (binary_input("input", COUNT), b"\0" * COUNT, None),
}


@pytest.mark.parametrize(("message", "binary", "json_length"), BINARY_DATA.values(), ids=BINARY_DATA)
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
