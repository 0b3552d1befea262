"""Requests of the Open Inference Protocol in protobuf: what is invalid in JSON is invalid here too."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from load_tests.fuzz import strategies
from resnet_service.errors import InvalidImageError, InvalidRequestError, PayloadTooLarge
from resnet_service.server.rpc.codec import measure_request, parse_request, requested_model
from resnet_service.server.rpc.message_limits import MAX_FIELDS
from resnet_service.server.v2.codec import ParsedRequest
from tests.support.rpc import INVALID_MESSAGES as MESSAGES
from tests.support.rpc import INVALID_RAW_CONTENTS as BINARY_DATA
from tests.support.rpc import NOT_MESSAGES, ONLY_IN_JSON, to_protobuf
from tests.support.v2 import (
    CROPS,
    IMAGES,
    INPUTS,
    INVALID_MESSAGES,
    MODEL,
    SIDE,
    binary_elements,
    binary_input,
    json_input,
)

MAX_IMAGES = 64


def parse(data: bytes) -> ParsedRequest:
    measure_request(data)
    return parse_request(data, MODEL, MAX_IMAGES)


def parse_message(message: dict[str, Any], binary: bytes | None = None) -> ParsedRequest:
    return parse(to_protobuf(message, binary).SerializeToString())


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_message_that_is_invalid_in_json_is_rejected(message: dict[str, Any]) -> None:
    """A request that does not match the protocol or the model raises an error with a short message."""
    with pytest.raises((InvalidRequestError, PayloadTooLarge)) as error:
        parse_message(message)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("name", sorted(ONLY_IN_JSON))
def test_cases_that_are_left_out_exist(name: str) -> None:
    """The names of the cases that protobuf does not have are those of cases."""
    assert name in INVALID_MESSAGES


@pytest.mark.parametrize(("message", "binary"), BINARY_DATA.values(), ids=BINARY_DATA)
def test_inconsistent_raw_contents_are_rejected(message: dict[str, Any], binary: bytes) -> None:
    """Raw contents whose size contradicts the shape, and those beside typed contents, are rejected."""
    with pytest.raises(InvalidRequestError):
        parse_message(message, binary)


def test_raw_contents_need_one_element_for_each_input() -> None:
    """An element of the raw contents belongs to an input."""
    request = to_protobuf({"inputs": [json_input(data=None)]}, b"")
    request.raw_input_contents.append(b"")
    with pytest.raises(InvalidRequestError, match="2 elements for 1 inputs"):
        parse(request.SerializeToString())


@pytest.mark.parametrize("data", NOT_MESSAGES.values(), ids=NOT_MESSAGES)
def test_bytes_that_are_no_message_are_rejected(data: bytes) -> None:
    """Bytes that are not a message of the protocol raise InvalidRequestError."""
    with pytest.raises(InvalidRequestError):
        parse(data)


@pytest.mark.parametrize("name", ["inputs", "outputs", "parameters", "raw_input_contents", "bytes_contents"])
def test_many_small_fields_are_rejected_before_they_take_memory(name: str) -> None:
    """A message of 4 MB with two million empty fields, which would take 200 MB, is rejected in 4 MB."""
    number = {"parameters": 4, "inputs": 5, "outputs": 6, "raw_input_contents": 7}.get(name)
    data = bytes((number << 3 | 2, 0)) * 2_000_000 if number else _nested(b"\x42\x00" * 2_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge, match=f"{MAX_FIELDS:,} fields"):
            parse(data)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


def _nested(contents: bytes) -> bytes:
    """Return a message with an input that has these contents."""
    for tag in (0x2A, 0x2A):
        size, length = len(contents), b""
        while size > 0x7F:
            length += bytes((size & 0x7F | 0x80,))
            size >>= 7
        contents = bytes((tag,)) + length + bytes((size,)) + contents
    return contents


def test_long_shape_is_rejected() -> None:
    """A shape of a million numbers is rejected before it is parsed."""
    with pytest.raises(PayloadTooLarge, match="shape"):
        parse_message({"inputs": [json_input("pixels", shape=[1] * 1_000_000, data=[0])]})


def test_many_typed_values_are_rejected() -> None:
    """Numbers that are not binary are limited as in JSON."""
    shape = [60, 3, SIDE * SIDE, SIDE]
    with pytest.raises(InvalidRequestError):  # the shape is checked first
        parse_message({"inputs": [json_input("input", shape=shape, data=[0.0])]})
    values = [0] * (170 * SIDE * SIDE * 3)
    request = to_protobuf({"inputs": [json_input("pixels", shape=[170, SIDE, SIDE, 3], data=values)]})
    with pytest.raises(PayloadTooLarge, match="500,000 values"):
        parse_request(request.SerializeToString(), MODEL, max_images=1000)


@pytest.mark.parametrize("count", [65, 2**62])
def test_too_many_images_are_rejected(count: int) -> None:
    """More images than the limit raise PayloadTooLarge, however few bytes they have."""
    with pytest.raises(PayloadTooLarge, match="64"):
        parse_message({"inputs": [json_input(shape=[count], data=[""] * 65)]})


@pytest.mark.parametrize(("name", "version"), [("other", ""), ("", ""), ("cifar10", "2"), ("x" * 1000, "01")])
def test_model_of_a_request_is_known_before_it_is_parsed(name: str, version: str) -> None:
    """Its name and its version are those of the message, which may have any others."""
    request = to_protobuf({"inputs": [json_input()]})
    request.model_name, request.model_version = name, version
    assert requested_model(request.SerializeToString()) == (name, version or None)


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x02\xff\xff", b"\xff" * 20])
def test_model_of_a_damaged_request_is_rejected(data: bytes) -> None:
    """As the whole request would be."""
    with pytest.raises(InvalidRequestError):
        requested_model(data)


def test_shape_in_many_pieces_is_rejected() -> None:
    """Protobuf joins packed fields with the same number: their sizes count together."""
    request = service_pb2.ModelInferRequest(inputs=[{"name": "pixels", "shape": [1] * 900}])
    piece = request.inputs[0].SerializeToString()
    whole = service_pb2.ModelInferRequest(model_name="cifar10").SerializeToString()
    length = bytes([(2 * len(piece)) & 0x7F | 0x80, (2 * len(piece)) >> 7])
    with pytest.raises(PayloadTooLarge, match="shapes"):
        measure_request(whole + b"\x2a" + length + piece + piece)


def test_numbers_of_another_datatype_are_limited_as_well() -> None:
    """Five million bytes are the most that the numbers of any field may have."""
    request = to_protobuf({"inputs": [json_input("pixels", data=[0])]})
    request.inputs[0].contents.int64_contents.extend([2**62] * 600_000)
    with pytest.raises(PayloadTooLarge, match="500,000 values"):
        measure_request(request.SerializeToString())


@pytest.mark.parametrize("is_raw", [True, False])
@pytest.mark.parametrize("name", INPUTS)
def test_raw_and_typed_contents_are_the_same_images(name: str, is_raw: bool) -> None:
    """Each input has the same images in raw and in typed contents, and as many fields as are counted."""
    values = INPUTS[name][1]
    if is_raw:
        raw = binary_elements(*IMAGES) if name == "image" else values.tobytes()
        request = parse_message({"inputs": [json_input(name, data=None)]}, raw)
    else:
        request = parse_message({"inputs": [json_input(name)]})
    assert request.parameters.binary_data_output is is_raw
    images = [image() if callable(image) else image for image in request.images]
    expected = IMAGES if name == "image" else CROPS
    assert all(np.array_equal(one, other) for one, other in zip(images, expected, strict=True))


def test_only_what_has_to_be_parsed_is_measured() -> None:
    """Image files and raw contents do not count, numbers do."""
    raw = to_protobuf(binary_input("image", 0), b"x" * 1_000_000).SerializeToString()
    typed = to_protobuf({"inputs": [json_input(data=[""], shape=[1])]})
    typed.inputs[0].contents.bytes_contents[0] = b"x" * 1_000_000
    assert max(measure_request(raw), measure_request(typed.SerializeToString())) < 200
    numbers = to_protobuf({"inputs": [json_input("pixels", data=[1] * 1_000_000)]})
    assert measure_request(numbers.SerializeToString()) > 1_000_000


DAMAGED = st.sampled_from(
    [
        to_protobuf({"inputs": [json_input()], "outputs": [{"name": "label"}], "parameters": {"top_k": 2}}),
        to_protobuf(binary_input("pixels", 0), CROPS.tobytes()),
        to_protobuf({"inputs": [json_input("input", data=[0.5] * 3)]}),
    ]
).flatmap(lambda message: strategies.damaged(message.SerializeToString()))


@settings(max_examples=300, deadline=None)
@given(DAMAGED | st.binary(max_size=300))
def test_any_bytes_are_a_request_or_an_error_of_the_client(data: bytes) -> None:
    """Damaged messages and random bytes yield images or an error with a short message."""
    try:
        request = parse(data)
        for image in request.images:
            if callable(image):
                image()
        assert 0 < len(request.images) <= MAX_IMAGES
        message = ""
    except (InvalidRequestError, InvalidImageError, PayloadTooLarge) as error:
        message = str(error)
    assert len(message) < 1000
