"""Each kind of bad input over REST has its counterpart over gRPC: same error, and no harm to the service.

What gRPC cannot express is in `ONLY_IN_JSON`, with the reason. Over REST, tests/unit/test_v2_codec.py and
tests/integration/test_v2.py, test_hostile_input.py and test_faults.py have these kinds. test_rpc_errors.py
has those that depend on time, API keys and load.
"""

import errno
import random
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode
from tritonclient.grpc import service_pb2, service_pb2_grpc

from load_tests.fuzz.corpus import corpus
from resnet_service.settings import Settings
from tests.support.faults import Fault, faults
from tests.support.http import files
from tests.support.rpc import INVALID_MESSAGES, INVALID_RAW_CONTENTS, NOT_MESSAGES, to_protobuf
from tests.support.server import Running, only_once, serving
from tests.support.v2 import (
    CROPS,
    IMAGES,
    INFER_PATH,
    INPUTS,
    SIDE,
    base64_strings,
    binary_elements,
    binary_input,
    binary_request,
    json_input,
    output_data,
)

pytestmark = only_once


MAX_CONCURRENCY = 4
INFER = "/inference.GRPCInferenceService/ModelInfer"
VALID = to_protobuf(binary_input("image", 0), binary_elements(*IMAGES))
CODES = {
    404: StatusCode.NOT_FOUND,
    413: StatusCode.RESOURCE_EXHAUSTED,
    415: StatusCode.INVALID_ARGUMENT,
    422: StatusCode.INVALID_ARGUMENT,
}
"""For the statuses of REST."""

OWN_ERRORS: dict[str, str] = {
    "no inputs": "send exactly one of the inputs image, pixels, input, got 0",
    "no name": "unknown input ''; the model has image, pixels, input",
    "100,000 dimensions": "the shapes exceed 1,000 bytes",
    "no data": "image: expected bytes_contents or raw_input_contents, got no data",
    "binary size without data": "image: expected bytes_contents or raw_input_contents, got no data",
    "too few images": "image: the data does not match the shape: expected 4 elements, got 3",
    "too many images": "image: the data does not match the shape: expected 2 elements, got 3",
    "numbers for images": "image: expected bytes_contents or raw_input_contents, got uint_contents",
    "too few numbers": "pixels: the data does not match the shape: expected 9216 elements, got 9215",
    "too many numbers": "input: the data does not match the shape: expected 9216 elements, got 9217",
    "below zero": "pixels: expected uint_contents or raw_input_contents, got int_contents",
    "fractions": "pixels: expected uint_contents or raw_input_contents, got fp32_contents",
    "booleans": "pixels: expected uint_contents or raw_input_contents, got bool_contents",
    "strings for numbers": "input: expected fp32_contents or raw_input_contents, got bytes_contents",
    "less data": "image: element 2 is longer than the remaining data",
    "more data": "image: 1 bytes remain after 3 elements",
    "unannounced data": "image: send either contents or raw_input_contents",
}
"""Errors about how protobuf has the data; all others are those of REST."""


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Yield a server with a port for gRPC, and few places for requests."""
    settings = Settings(model="cifar10", max_concurrency=MAX_CONCURRENCY, max_upload_mb=2)
    with serving(settings, grpc=True) as running:
        yield running


@pytest.fixture(scope="module")
def channel(server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc_url) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def labels(server: Running) -> list[bytes]:
    """Return the labels of `VALID`, from REST."""
    response = server.client.post(INFER_PATH, json={"inputs": [json_input()]})
    return [label.encode() for label in output_data(response)["label"]]


@pytest.fixture(autouse=True)
def unharmed(server: Running, stub: Any, labels: list[bytes]) -> Iterator[None]:
    """Check after each test that as many requests as before run at the same time, and nothing is left."""
    yield
    with server.runtime.held():
        calls = [stub.ModelInfer.future(VALID) for _ in range(MAX_CONCURRENCY)]
        in_flight = MAX_CONCURRENCY * len(IMAGES)
        server.wait_for(lambda: server.metric("inference_in_flight") == in_flight)
        assert server.metric("inference_requests_waiting") == 0
        server.runtime.release()
        for call in calls:
            response = call.result(timeout=30)
            found = dict(
                zip([one.name for one in response.outputs], response.raw_output_contents, strict=True)
            )
            assert found["label"] == b"".join(len(one).to_bytes(4, "little") + one for one in labels)
    for name in ("in_flight", "queue_depth", "requests_waiting", "decode_waiting", "upload_bytes"):
        server.wait_for(lambda name=name: server.metric(f"inference_{name}") == 0)  # type: ignore[misc]
    for code in ("INTERNAL", "UNKNOWN"):  # with these, a defect is logged
        assert server.metric("inference_grpc_request_seconds_count", code=code) == 0
    assert server.metric("inference_images_total", outcome="failed") == 0


def failure(stub: Any, request: Any, method: str = "ModelInfer", **options: Any) -> tuple[StatusCode, str]:
    """Return the code and the message of a call, which must fail."""
    return code_and_details(getattr(stub, method), request, **options)


def code_and_details(call: Callable[..., Any], request: Any, **options: Any) -> tuple[StatusCode, str]:
    """Return the code and the message of a call, which must fail, with a short message."""
    with pytest.raises(grpc.RpcError) as error:
        call(request, **options)
    details = error.value.details() or ""
    assert 0 < len(details) < 300
    return error.value.code(), details


def rest_error(server: Running, **body: Any) -> tuple[StatusCode, str]:
    """Return the error of the request over REST, with the code for its status."""
    response = server.client.post(INFER_PATH, **body)
    return CODES[response.status_code], response.json()["error"]


# Messages


@pytest.mark.parametrize("name", INVALID_MESSAGES)
def test_invalid_message_gets_the_error_of_rest(server: Running, stub: Any, name: str) -> None:
    """The code fits the status of REST, and the message says what is wrong with the request."""
    message = INVALID_MESSAGES[name]
    code, details = failure(stub, to_protobuf(message))
    expected_code, expected = rest_error(server, json=message)
    if name == "100,000 dimensions":  # found before the message is parsed
        expected_code = StatusCode.RESOURCE_EXHAUSTED
    assert (code, details) == (expected_code, OWN_ERRORS.get(name, expected))


@pytest.mark.parametrize("name", INVALID_RAW_CONTENTS)
def test_inconsistent_raw_contents_get_the_error_of_rest(server: Running, stub: Any, name: str) -> None:
    """Raw contents of the wrong size, for the wrong shape, or beside typed contents."""
    message, binary = INVALID_RAW_CONTENTS[name]
    code, details = failure(stub, to_protobuf(message, binary))
    expected_code, expected = rest_error(server, **binary_request(message, binary))
    assert (code, details) == (expected_code, OWN_ERRORS.get(name, expected))


def test_errors_of_grpc_alone_belong_to_kinds() -> None:
    """No name in the table is misspelled."""
    assert set(OWN_ERRORS) <= set(INVALID_MESSAGES) | set(INVALID_RAW_CONTENTS)


@pytest.mark.parametrize("count", [0, 2, 3])
def test_raw_contents_need_one_element_for_each_input(stub: Any, count: int) -> None:
    """The number of elements is in the message; without any, there is no data."""
    request = to_protobuf(binary_input("image", 0))
    request.raw_input_contents.extend([binary_elements(*IMAGES)] * count)
    code, details = failure(stub, request)
    assert code is StatusCode.INVALID_ARGUMENT
    assert (f"{count} elements for 1 inputs" if count else "got no data") in details


@pytest.mark.parametrize(
    "field", ["bool_contents", "int_contents", "int64_contents", "uint64_contents", "fp64_contents"]
)
def test_contents_of_another_datatype_are_named(stub: Any, field: str) -> None:
    """Each field of the contents that no input uses, alone and beside the right one."""
    request = to_protobuf({"inputs": [json_input("pixels", data=None)]})
    getattr(request.inputs[0].contents, field).extend([1] * CROPS.size)
    code, details = failure(stub, request)
    assert (code, details) == (
        StatusCode.INVALID_ARGUMENT,
        f"pixels: expected uint_contents or raw_input_contents, got {field}",
    )
    request.inputs[0].contents.uint_contents.extend([1] * CROPS.size)
    code, details = failure(stub, request)
    assert code is StatusCode.INVALID_ARGUMENT
    assert field in details
    assert "uint_contents" in details


@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "ModelConfig", "RepositoryIndex"])
@pytest.mark.parametrize("name", NOT_MESSAGES)
def test_bytes_that_are_no_message_are_invalid(channel: grpc.Channel, method: str, name: str) -> None:
    """As text that is not JSON."""
    call: Any = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
    code, details = code_and_details(call, NOT_MESSAGES[name])
    assert code is StatusCode.INVALID_ARGUMENT
    assert details.startswith("the message ")


# Parameters


@pytest.mark.parametrize(
    "parameters",
    [
        *({"top_k": value} for value in (0, -1, 11, 2**63 - 1, "5", True, 2.0)),
        *({"timeout": value} for value in (-1, 1.5, 1e300, "1000000", True)),
        *({"priority": value} for value in (-1, "high", 1.0)),
        {"timeout_ms": 5},
        {"topk": 5},
        {"binary_data_output": "yes"},
        {"binary_data_output": 1},
        {"shared_memory_region": "a"},
        {"x" * 1000: 1},
    ],
    ids=lambda parameters: str(parameters)[:40],
)
def test_invalid_parameter_gets_the_error_of_rest(
    server: Running, stub: Any, parameters: dict[str, Any]
) -> None:
    """Values out of range or of another type, and names that are misspelled."""
    message = {"inputs": [json_input()], "parameters": parameters}
    assert failure(stub, to_protobuf(message)) == rest_error(server, json=message)


@pytest.mark.parametrize("name", ["top_k", "priority", "timeout", "binary_data_output"])
def test_parameter_without_a_value_is_that_of_null(server: Running, stub: Any, name: str) -> None:
    """A parameter may have no value in protobuf."""
    message = {"inputs": [json_input()], "parameters": {name: None}}
    request = to_protobuf({"inputs": [json_input()]})
    request.parameters[name].SetInParent()
    response = server.client.post(INFER_PATH, json=message)
    if response.status_code == 200:
        assert stub.ModelInfer(request).model_name == "cifar10"
    else:
        assert failure(stub, request) == rest_error(server, json=message)


# Names


@pytest.mark.parametrize(("name", "version"), [("other", ""), ("", ""), ("x" * 1000, ""), ("cifar10", "01")])
@pytest.mark.parametrize(
    "method", ["ModelInfer", "ModelMetadata", "ModelReady", "ModelConfig", "ModelStatistics"]
)
def test_unknown_model_or_version_is_not_found(stub: Any, method: str, name: str, version: str) -> None:
    """Each method says what the server has; the statistics without a name are those of all models."""
    if method == "ModelInfer":
        request = to_protobuf({"inputs": [json_input()]})
        request.model_name, request.model_version = name, version
    else:
        request = getattr(service_pb2, f"{method}Request")(name=name, version=version)
    if (method, name) == ("ModelStatistics", ""):
        assert [one.name for one in stub.ModelStatistics(request).model_stats] == ["cifar10"]
        return
    code, details = failure(stub, request, method)
    assert code is StatusCode.NOT_FOUND
    assert re.match(r"unknown (model|version) ", details)


def test_unknown_repository_is_invalid(stub: Any) -> None:
    """The server has one, without a name."""
    request = service_pb2.RepositoryIndexRequest(repository_name="x" * 1000)
    code, details = failure(stub, request, "RepositoryIndex")
    assert code is StatusCode.INVALID_ARGUMENT
    assert details.startswith("unknown repository")


# Sizes and values


@pytest.mark.parametrize("count", [65, 2**31, 2**62])
@pytest.mark.parametrize("is_raw", [True, False])
def test_too_many_images_are_rejected(stub: Any, count: int, is_raw: bool) -> None:
    """By the shape, whatever the data is."""
    message = {"inputs": [json_input(shape=[count], data=None if is_raw else [""] * 65)]}
    code, details = failure(stub, to_protobuf(message, b"\0" * 260 if is_raw else None))
    assert (code, details) == (
        StatusCode.RESOURCE_EXHAUSTED,
        f"the request has {count} images; the limit is 64",
    )


def test_too_many_values_and_fields_are_rejected(stub: Any) -> None:
    """As too much JSON; the message says to send the data as binary."""
    many = to_protobuf({"inputs": [json_input("pixels", shape=[170, SIDE, SIDE, 3], data=None)]})
    many.inputs[0].contents.uint_contents.extend([0] * (170 * SIDE * SIDE * 3))
    fields = to_protobuf({"inputs": [json_input()]})
    for _ in range(10_000):
        fields.outputs.add()
    for request, reason in ((many, "images; the limit is 64"), (fields, "exceeds 10,000 fields")):
        code, details = failure(stub, request)
        assert code is StatusCode.RESOURCE_EXHAUSTED
        assert reason in details


def test_message_over_the_limit_is_rejected(server: Running, channel: grpc.Channel) -> None:
    """The limit on uploads is that on messages; a message over it counts as an invalid image."""
    invalid = server.metric("inference_images_total", outcome="invalid")
    code, details = code_and_details(channel.unary_unary(INFER), b"x" * 2_000_001)
    assert code is StatusCode.RESOURCE_EXHAUSTED
    assert "2000001 vs. 2000000" in details
    server.wait_for(lambda: server.metric("inference_images_total", outcome="invalid") == invalid + 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("is_raw", [True, False])
def test_values_that_are_not_finite_get_the_error_of_rest(
    server: Running, stub: Any, value: float, is_raw: bool
) -> None:
    """With the index of their image, in raw and in typed contents."""
    values = INPUTS["input"][1].copy()
    values[2, 0, 0, 0] = value
    message = binary_input("input", values.nbytes)
    expected = rest_error(server, **binary_request(message, values.tobytes()))
    assert "input[2]" in expected[1]
    if is_raw:
        assert failure(stub, to_protobuf(message, values.tobytes())) == expected
    else:
        typed = to_protobuf({"inputs": [json_input("input", data=values.ravel().tolist())]})
        assert failure(stub, typed) == expected


def test_values_beyond_fp32_are_named(stub: Any) -> None:
    """Numbers of 8 bytes have no field for the input, and are named."""
    request = to_protobuf({"inputs": [json_input("input", data=None)]})
    request.inputs[0].contents.fp64_contents.extend(np.full(CROPS.size, 1e300))
    code, details = failure(stub, request)
    assert code is StatusCode.INVALID_ARGUMENT
    assert "got fp64_contents" in details


# Images


@pytest.mark.parametrize(
    "image", [b"text", b"\xff\xd8\xff", b"", IMAGES[0][:200]], ids=["text", "damaged", "empty", "truncated"]
)
@pytest.mark.parametrize("is_raw", [True, False])
def test_invalid_image_gets_the_error_of_rest(server: Running, stub: Any, image: bytes, is_raw: bool) -> None:
    """The error names the image of the request."""
    message = {"inputs": [json_input(data=base64_strings(IMAGES[0], image, IMAGES[1]))]}
    expected = rest_error(server, json=message)
    assert expected[1].startswith("image[1]: ")
    binary = binary_elements(IMAGES[0], image, IMAGES[1])
    request = to_protobuf(binary_input("image", 0), binary) if is_raw else to_protobuf(message)
    assert failure(stub, request) == expected


@pytest.mark.parametrize("prefix", ["bomb", "none", ""])
def test_damaged_files_get_the_result_of_rest(server: Running, stub: Any, prefix: str) -> None:
    """Decompression bombs, other files, and any files of the corpus: a result, or the same error."""
    names, data = zip(*(one for one in corpus() if one[0].startswith(prefix)), strict=True)
    for index in random.Random(0).sample(range(len(names)), min(64, len(names))):
        image, name = data[index], names[index]
        if len(image) > 1_900_000:
            continue
        result = server.client.post("/predict/batch", files=files(image)).json()["results"][0]
        request = to_protobuf(
            {"inputs": [json_input(shape=[1], data=None)]}, len(image).to_bytes(4, "little") + image
        )
        if "error" not in result:
            assert stub.ModelInfer(request).model_name == "cifar10", name
            continue
        code, details = failure(stub, request)
        assert code is CODES[result["error"]["status"]], name
        assert details == f"image[0]: {result['error']['detail']}", name


@pytest.mark.skipif(not faults(), reason="needs the files that once failed")
@pytest.mark.parametrize("fault", faults(), ids=lambda fault: fault.name)
def test_file_that_once_failed_follows_its_rule(stub: Any, fault: Fault) -> None:
    """It is classified, or gets a code for one of the statuses that it may have."""
    binary = len(fault.data).to_bytes(4, "little") + fault.data
    request = to_protobuf({"inputs": [json_input(shape=[1], data=None)]}, binary)
    codes = {
        CODES.get(status, StatusCode.OK) for status in fault.statuses if status == 200 or status in CODES
    }
    call = stub.ModelInfer.future(request)
    assert call.code() in codes
    assert call.code() is StatusCode.OK or call.details().startswith("image[0]: ")


# Metadata and connections


@pytest.mark.parametrize(
    "metadata",
    [
        (("x-request-id", "x" * 5000),),
        (("traceparent", "00-nonsense"),),
        (("x-api-key", "k" * 4000), ("authorization", "Nonsense")),
        (("x-bin", b"\xff\0"), ("x-request-id", "a"), ("x-request-id", "b")),
    ],
    ids=["long id", "invalid trace", "keys without need", "binary and repeated"],
)
def test_useless_metadata_has_no_effect(stub: Any, metadata: Any) -> None:
    """Values that are not usable are ignored, as over REST."""
    assert stub.ModelInfer(VALID, metadata=metadata).model_name == "cifar10"


def test_metadata_over_the_limit_of_grpc_is_rejected(stub: Any) -> None:
    """As request headers that are too large."""
    code, _ = failure(stub, VALID, metadata=(("x-large", "x" * 100_000),))
    assert code is StatusCode.RESOURCE_EXHAUSTED


def test_client_that_sends_several_messages_gets_one_result(channel: grpc.Channel) -> None:
    """A call has one request; further messages are not read."""
    messages = iter([VALID.SerializeToString(), b"\xff" * 1000, VALID.SerializeToString()])
    response = service_pb2.ModelInferResponse.FromString(channel.stream_unary(INFER)(messages))
    assert response.model_name == "cifar10"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff" * 100_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0" + b"\0\0\5\0\0\0\0\0\1hello",
        b"",
    ],
    ids=["HTTP/1.1", "random bytes", "damaged HTTP/2", "data without headers", "nothing"],
)
def test_connection_that_speaks_no_grpc_is_closed(server: Running, data: bytes) -> None:
    """The connection ends, and those of other clients go on."""
    host, port = server.grpc_url.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass
        except OSError as error:
            if error.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN):
                raise  # otherwise, the server has closed it while this client sends
