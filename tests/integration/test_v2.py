"""The Open Inference Protocol over a real server: outputs, batches, errors and overload."""

import json
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http

from resnet_service.settings import Settings
from tests.support import REPOSITORY
from tests.support.http import files, oversized, reset, send_only
from tests.support.images import encode, make_image
from tests.support.server import Running, serving
from tests.support.v2 import (
    CROPS,
    IMAGES,
    INFER_PATH,
    INPUTS,
    JSON_LENGTH_HEADER,
    SIDE,
    base64_strings,
    binary_elements,
    binary_input,
    binary_request,
    error_message,
    json_input,
    output_data,
)

MESSAGE = {"inputs": [json_input()]}
PIXELS_MESSAGE = {"inputs": [json_input("pixels")]}


@pytest.fixture
def client(server: Running) -> httpx.Client:
    return server.client


# Outputs


def test_response_has_requested_outputs_only(client: httpx.Client) -> None:
    """A response has the requested outputs in their order, in binary or JSON, and the request's id."""
    elements = binary_elements(*IMAGES)
    message = binary_input("image", len(elements)) | {
        "id": "7",
        "outputs": [
            {"name": "probability"},
            {"name": "class_id", "parameters": {"binary_data": False}},
        ],
        "parameters": {"binary_data_output": True, "top_k": 1},
    }
    response = client.post(INFER_PATH, **binary_request(message, elements))
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers[JSON_LENGTH_HEADER])
    body = json.loads(response.content[:length])
    assert (body["model_name"], body["model_version"], body["id"]) == ("cifar10", "1", "7")
    probability, class_id = body["outputs"]
    assert probability == {
        "name": "probability",
        "datatype": "FP32",
        "shape": [3, 1],
        "parameters": {"binary_data_size": 12},
    }
    assert (class_id["name"], class_id["shape"], len(class_id["data"])) == ("class_id", [3, 1], 3)
    assert np.frombuffer(response.content[length:], "<f4").min() > 0.1


def test_openapi_example_gets_documented_response(client: httpx.Client) -> None:
    """The example request in the OpenAPI document gets a response like the example response."""
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v2/models/{name}/infer"]["post"]
    request = operation["requestBody"]["content"]["application/json"]["example"]
    response = client.post(INFER_PATH, json=request)
    expected = document["components"]["schemas"]["InferResponse"]["example"]
    assert response.json().keys() == expected.keys()
    for output, example in zip(response.json()["outputs"], expected["outputs"], strict=True):
        assert output | {"data": 0} == example | {"data": 0}


def test_examples_of_serving_guide_run(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Python code and the commands in docs/serving.md run and print the same label."""
    page = (REPOSITORY / "docs/serving.md").read_text(encoding="utf-8")
    section = page.split("## Open Inference Protocol")[1].split("\n## ")[0]
    section = section.replace("localhost:8000", server.url.removeprefix("http://"))
    (tmp_path / "dog.jpg").write_bytes(encode(make_image(300, 200)))
    monkeypatch.chdir(tmp_path)
    [python] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(python, {})
    printed = capsys.readouterr().out
    commands = "\n".join(re.findall(r"^    (\S.*)", section.replace(python, ""), re.MULTILINE))
    result = subprocess.run(["bash", "-c", commands], cwd=tmp_path, check=True, capture_output=True)
    label = json.loads(result.stdout)["outputs"][2]["data"][0]
    assert f"[[b'{label}' b'" in printed


def test_metrics_label_is_the_route_template(server: Running) -> None:
    """A client cannot create metric labels by requesting paths."""
    for name in ("one", "two"):
        server.client.get(f"/v2/models/{name}")
    labels = {"route": "/v2/models/{name}", "status": "404"}
    assert server.metric("inference_request_seconds_count", **labels) >= 2
    assert "/v2/models/one" not in server.client.get("/metrics").text


# Batches


def test_request_shares_batch_with_predict(server: Running) -> None:
    """Images of one request and one of /predict that wait for the device form one batch."""
    batches = server.metric("inference_batch_size_count")
    with ThreadPoolExecutor(3) as pool, server.runtime.held():
        first = pool.submit(server.client.post, "/predict", files=files(IMAGES[0]))
        assert server.runtime.begun.acquire(timeout=30)
        many = pool.submit(server.client.post, INFER_PATH, json=PIXELS_MESSAGE)
        single = pool.submit(server.client.post, "/predict", files=files(IMAGES[0]))
        server.wait_for(lambda: server.metric("inference_queue_depth") == 4)
        server.runtime.release()
        assert {future.result().status_code for future in (first, many, single)} == {200}
    assert server.metric("inference_batch_size_count") - batches == 2


def test_request_larger_than_batch_and_queue_keeps_order() -> None:
    """60 images get their results in order from a device with batches of 4 and a queue of 4."""
    pixels = np.tile(CROPS, (20, 1, 1, 1))
    message = {
        "inputs": [json_input("pixels", shape=[60, SIDE, SIDE, 3], data=pixels.tolist())],
        "parameters": {"top_k": 1},
    }
    with serving(Settings(model="cifar10", max_batch=4, max_queue=4)) as server:
        single = [server.client.post("/predict?top_k=1", files=files(image)).json() for image in IMAGES]
        class_ids = output_data(server.client.post(INFER_PATH, json=message))["class_id"]
        assert class_ids == [one["predictions"][0]["class_id"] for one in single] * 20
        assert server.metric("inference_images_total", outcome="ok") == 63


def test_images_of_disconnected_client_are_not_run(server: Running) -> None:
    """The queued images of a client that disconnects never reach the device."""
    cancelled = server.metric("inference_images_total", outcome="cancelled")
    images = server.metric("inference_batch_size_sum")
    with ThreadPoolExecutor(1) as pool, server.runtime.held():
        first = pool.submit(server.client.post, "/predict", files=files(IMAGES[0]))
        assert server.runtime.begun.acquire(timeout=30)
        connection = send_only(server, json.dumps(MESSAGE).encode(), INFER_PATH)
        server.wait_for(lambda: server.metric("inference_queue_depth") == 3)
        reset(connection)
        server.wait_for(lambda: server.metric("inference_images_total", outcome="cancelled") == cancelled + 3)
        server.runtime.release()
        assert first.result().status_code == 200
    assert server.metric("inference_batch_size_sum") - images == 1


# Rejected requests; tests/unit/test_v2_codec.py has the rest


@pytest.mark.parametrize(
    ("image", "status", "reason"),
    [(b"text", 415, "format"), (b"\xff\xd8\xff", 422, "damaged"), (b"", 422, "empty")],
)
def test_invalid_image_fails_its_request(
    client: httpx.Client, image: bytes, status: int, reason: str
) -> None:
    """The error names the index of the image; the valid images of the request get no result."""
    data = base64_strings(IMAGES[0], image, IMAGES[1])
    message = error_message(client.post(INFER_PATH, json={"inputs": [json_input(data=data)]}), status)
    assert message.startswith("image[1]: ")
    assert reason in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_numbers_are_rejected_with_index(client: httpx.Client, value: float) -> None:
    """NaN and infinity, which only binary data can contain, are rejected with the image's index."""
    values = INPUTS["input"][1].copy()
    values[2, 0, 0, 0] = value
    request = binary_request(binary_input("input", values.nbytes), values.tobytes())
    assert "input[2]" in error_message(client.post(INFER_PATH, **request), 422)


def test_numbers_beyond_fp32_are_rejected_with_index(client: httpx.Client) -> None:
    """Numbers that become infinite as FP32 are rejected; each image has some, and any may be reported."""
    too_large = json_input("input", data=[1e300] * INPUTS["input"][1].size)
    message = error_message(client.post(INFER_PATH, json={"inputs": [too_large]}), 422)
    assert re.match(r"input\[[012]\]: ", message)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/resnet50", 404),
        ("GET", "/v2/models/cifar10/versions/2", 404),
        ("GET", "/v2/models/cifar10/versions/2/ready", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/cifar10/versions/01/infer", 404),
        ("GET", "/v2/models/other/config", 404),
        ("GET", "/v2/models/cifar10/versions/2/config", 404),
        ("GET", "/v2/models/other/stats", 404),
        ("GET", "/v2/models/cifar10/versions/2/stats", 404),
        ("GET", "/v2/repository/index", 405),
        ("GET", "/v2/nothing", 404),
        ("GET", INFER_PATH, 405),
        ("POST", "/v2", 405),
    ],
)
def test_unknown_paths_get_protocol_errors(client: httpx.Client, method: str, path: str, status: int) -> None:
    """Unknown models, versions, paths and methods are errors with the protocol's body."""
    error_message(client.request(method, path), status)


@pytest.mark.parametrize(
    "request_body",
    [
        {"content": b"image"},
        {"json": {"inputs": [json_input(shape=[4])]}},
        {"json": MESSAGE | {"parameters": {"top_k": 11}}},
        binary_request(binary_input("image", 9), b"\0" * 8),
    ],
    ids=["not JSON", "too few images", "top_k of 11", "too few bytes"],
)
def test_invalid_request_gets_422(client: httpx.Client, request_body: dict[str, Any]) -> None:
    """A request that does not match the protocol or the model gets 422; the next request is served."""
    error_message(client.post(INFER_PATH, **request_body), 422)
    output_data(client.post(INFER_PATH, json=MESSAGE))


@pytest.mark.parametrize("length", ["abc", "", "-5", "9" * 1000, "1000000000"])
def test_invalid_json_length_gets_422(client: httpx.Client, length: str) -> None:
    """The header with the length of the JSON must be a number within the body."""
    elements = binary_elements(*IMAGES)
    request = binary_request(binary_input("image", len(elements)), elements, length)
    error_message(client.post(INFER_PATH, **request), 422)


def test_too_many_images_and_too_much_json_get_413(client: httpx.Client) -> None:
    """The limits on images and on JSON are 413."""
    many = json_input("image", shape=[65], data=[""] * 65)
    assert "64" in error_message(client.post(INFER_PATH, json={"inputs": [many]}), 413)
    assert "200,000 lists" in error_message(client.post(INFER_PATH, content=b"[" * 200_000), 413)


# Overload and failures


@pytest.fixture(scope="module")
def strict_server() -> Iterator[Running]:
    """Yield a server with small limits on bodies, reading time and queue."""
    settings = Settings(model="cifar10", max_upload_mb=0.1, read_timeout_s=0.5, max_queue=2, max_batch=2)
    with serving(settings) as running:
        yield running


def test_full_queue_rejects_with_429_and_retry_after(strict_server: Running) -> None:
    """A request whose images do not all fit into the queue is rejected at once."""
    with ThreadPoolExecutor(2) as pool, strict_server.runtime.held():
        accepted = [pool.submit(strict_server.client.post, "/predict", files=files(IMAGES[0]))]
        assert strict_server.runtime.begun.acquire(timeout=30)
        accepted.append(pool.submit(strict_server.client.post, INFER_PATH, json=MESSAGE))
        strict_server.wait_for(lambda: strict_server.metric("inference_queue_depth") == 2)
        rejected = strict_server.client.post(INFER_PATH, json=MESSAGE)
        error_message(rejected, 429)
        assert int(rejected.headers["retry-after"]) >= 1
        strict_server.runtime.release()
        assert [future.result().status_code for future in accepted] == [200, 200]


@pytest.mark.parametrize(
    ("headers", "chunk", "status"),
    [("Content-Length: 900000000", b"", 413), ("Content-Length: 1000", b"x", 408)],
)
def test_too_large_or_too_slow_body_is_rejected(
    strict_server: Running, headers: str, chunk: bytes, status: int
) -> None:
    """A body over the limit gets 413, and one that does not arrive in time gets 408."""
    request = f"POST {INFER_PATH} HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n"
    response = oversized(strict_server, request, chunk, 1)
    assert response.startswith(f"HTTP/1.1 {status}".encode())
    assert b'{"error":' in response


def test_model_failure_is_500_without_internals(server: Running) -> None:
    """A failing batch gets 500 with the index of an image, and the next request is served."""
    server.runtime.error = RuntimeError("secret detail")
    try:
        message = error_message(server.client.post(INFER_PATH, json=PIXELS_MESSAGE), 500)
    finally:
        server.runtime.error = None
    assert message.startswith("pixels[")
    assert "secret" not in message
    output_data(server.client.post(INFER_PATH, json=PIXELS_MESSAGE))


def test_exceeded_deadline_is_504() -> None:
    """A request that the device does not finish in time gets 504."""
    with serving(Settings(model="cifar10", request_timeout_s=0.2)) as server, server.runtime.held():
        error_message(server.client.post(INFER_PATH, json=MESSAGE), 504)


def test_draining_server_is_live_and_not_ready() -> None:
    """The protocol's probes respond like /healthz and /readyz."""
    with serving(Settings(model="cifar10")) as server:
        server.engines.current.begin_drain()
        assert server.client.get("/v2/health/live").json() == {"live": True}
        for path in ("/v2/health/ready", "/v2/models/cifar10/ready"):
            rejected = server.client.get(path)
            error_message(rejected, server.client.get("/readyz").status_code)
            assert "retry-after" in rejected.headers
        with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as triton:
            assert triton.is_server_live()
            assert not triton.is_server_ready()
