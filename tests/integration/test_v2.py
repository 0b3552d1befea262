"""The Open Inference Protocol over a real server: NVIDIA's client as it is, and requests that none makes."""

import asyncio
import base64
import json
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from resnet_service.images import decode_image
from resnet_service.models import load_model
from resnet_service.settings import Settings
from tests.support import REPOSITORY
from tests.support.http import files, oversized, send_only
from tests.support.images import encode, make_image
from tests.support.server import Running, serving

INFER = "/v2/models/bundled/infer"
LENGTH = "Inference-Header-Content-Length"
PREPROCESSING = load_model("bundled").preprocessing
SIDE = PREPROCESSING.crop
IMAGES = [encode(make_image(seed=seed)) for seed in range(3)]
CROPS = np.stack([decode_image(image, PREPROCESSING) for image in IMAGES])


def normalized(crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return [N, 3, S, S] as a client that normalizes by itself sends it."""
    mean, std = np.array([PREPROCESSING.mean, PREPROCESSING.std], np.float32)
    values: npt.NDArray[np.float32] = ((crops.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(values)


INPUTS = {
    "image": ("BYTES", np.array(IMAGES, object)),
    "pixels": ("UINT8", CROPS),
    "input": ("FP32", normalized(CROPS)),
}


def triton_input(name: str, values: npt.NDArray[Any], binary: bool = True) -> Any:
    """Return an input of Triton's client; images in JSON are base64."""
    if name == "image" and not binary:
        encoded = [base64.b64encode(image) for image in values.flat]
        values = np.array(encoded, object).reshape(values.shape)
    tensor = tritonclient.http.InferInput(name, list(values.shape), INPUTS[name][0])
    return tensor.set_data_from_numpy(values, binary_data=binary)


def in_base64(*images: bytes) -> list[str]:
    return [base64.b64encode(image).decode() for image in images]


def tensor(name: str = "image", **changes: Any) -> dict[str, Any]:
    """Return a good input in JSON, with these changes; those to None are left out."""
    datatype, values = INPUTS[name]
    data = in_base64(*IMAGES) if name == "image" else values.tolist()
    changed = {"name": name, "datatype": datatype, "shape": list(values.shape), "data": data} | changes
    return {key: value for key, value in changed.items() if value is not None}


def elements(*images: bytes) -> bytes:
    """Return BYTES in binary."""
    return b"".join(len(image).to_bytes(4, "little") + image for image in images)


def binary_request(message: dict[str, Any], binary: bytes, length: object = None) -> dict[str, Any]:
    """Return what httpx sends for JSON and what follows it; `length` is what the header says instead."""
    head = json.dumps(message).encode()
    return {"content": head + binary, "headers": {LENGTH: str(len(head) if length is None else length)}}


def error(response: httpx.Response, status: int) -> str:
    """Check that this is an error of the protocol and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    return str(body["error"])


def outputs(response: httpx.Response) -> dict[str, Any]:
    """Return the data of an answer that is all JSON, by name."""
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


@pytest.fixture
def client(server: Running) -> httpx.Client:
    return server.client


@pytest.fixture
def triton(server: Running) -> Iterator[Any]:
    """NVIDIA's client."""
    with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


@pytest.fixture
def expected(client: httpx.Client) -> list[list[dict[str, Any]]]:
    """What /predict answers about each of the images, for all classes."""
    answers = [client.post("/predict?top_k=10", files=files(image)) for image in IMAGES]
    return [answer.json()["predictions"] for answer in answers]


def agrees(result: Any, expected: list[list[dict[str, Any]]], top_k: int = 5) -> None:
    """Check all outputs of Triton's client against /predict; batches of other sizes round differently."""
    assert result.as_numpy("class_id").dtype == np.int64
    assert result.as_numpy("probability").dtype == np.float32
    in_order = result.as_numpy("probabilities")
    assert in_order.sum(axis=1) == pytest.approx(1, abs=1e-5)
    for row, ranked in enumerate(expected):
        best = ranked[:top_k]
        assert result.as_numpy("class_id")[row].tolist() == [one["class_id"] for one in best]
        labels = [one["label"] for one in best]
        shown = result.as_numpy("label")[row].tolist()
        assert shown in (labels, [label.encode() for label in labels])  # from JSON, from binary
        probabilities = [one["probability"] for one in best]
        assert result.as_numpy("probability")[row] == pytest.approx(probabilities, abs=1e-3)
        assert in_order[row, [one["class_id"] for one in ranked]] == pytest.approx(
            [one["probability"] for one in ranked], abs=1e-3
        )


# NVIDIA's client


def test_metadata_and_health(triton: Any) -> None:
    """The client finds the server and the model alive and ready, and reads what they take and give."""
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("bundled")
    assert triton.is_model_ready("bundled", "1")
    assert not triton.is_model_ready("bundled", "2")
    assert triton.get_server_metadata()["extensions"] == ["binary_tensor_data", "classification"]
    metadata = triton.get_model_metadata("bundled", "1")
    assert metadata == triton.get_model_metadata("bundled")
    assert (metadata["name"], metadata["versions"]) == ("bundled", ["1"])
    declared = {one["name"]: (one["datatype"], one["shape"]) for one in metadata["inputs"]}
    assert declared == {name: (kind, [-1, *values.shape[1:]]) for name, (kind, values) in INPUTS.items()}
    assert [(one["name"], one["datatype"], one["shape"]) for one in metadata["outputs"]] == [
        ("probabilities", "FP32", [-1, 10]),
        ("class_id", "INT64", [-1, -1]),
        ("label", "BYTES", [-1, -1]),
        ("probability", "FP32", [-1, -1]),
    ]


@pytest.mark.parametrize("binary_outputs", [True, False])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name", INPUTS)
def test_inference_agrees_with_predict(
    triton: Any, expected: list[list[dict[str, Any]]], name: str, binary: bool, binary_outputs: bool
) -> None:
    """Each input in binary and in JSON gets in either the classes that /predict has for the same images."""
    names = ("class_id", "probabilities", "label", "probability")
    wanted = [tritonclient.http.InferRequestedOutput(one, binary_data=binary_outputs) for one in names]
    sent = triton_input(name, INPUTS[name][1], binary)
    result = triton.infer("bundled", [sent], model_version="1", outputs=wanted, request_id="abc")
    assert result.get_response()["id"] == "abc"
    assert [one["name"] for one in result.get_response()["outputs"]] == list(names)
    agrees(result, expected)


def test_asynchronous_inference(triton: Any, expected: list[list[dict[str, Any]]]) -> None:
    """Requests of the client's greenlets are answered, each its own, with all outputs by default."""
    running = [triton.async_infer("bundled", [triton_input(name, INPUTS[name][1])]) for name in INPUTS]
    for request in running:
        agrees(request.get_result(), expected)


def test_inference_with_asyncio(server: Running, expected: list[list[dict[str, Any]]]) -> None:
    """The client for asyncio is answered the same."""

    async def ask() -> list[Any]:
        url = server.url.removeprefix("http://")
        async with tritonclient.http.aio.InferenceServerClient(url) as client:
            assert await client.is_model_ready("bundled")
            sent = [[triton_input(name, values)] for name, (_, values) in INPUTS.items()]
            return await asyncio.gather(*(client.infer("bundled", one) for one in sent))

    for result in asyncio.run(ask()):
        agrees(result, expected)


@pytest.mark.parametrize(("count", "shown"), [(2, 2), (1000, 10)])
def test_classification(triton: Any, count: int, shown: int) -> None:
    """Triton's extension gives the best classes in words, all of them where more are asked for."""
    wanted = [
        tritonclient.http.InferRequestedOutput("probabilities", class_count=count),
        tritonclient.http.InferRequestedOutput("label", binary_data=False),
        tritonclient.http.InferRequestedOutput("class_id"),
        tritonclient.http.InferRequestedOutput("probability"),
    ]
    sent = triton_input("pixels", CROPS)
    result = triton.infer("bundled", [sent], outputs=wanted, parameters={"top_k": shown})
    words = result.as_numpy("probabilities")
    assert words.shape == result.as_numpy("label").shape == (3, shown)
    for word, label, index, probability in zip(
        *(result.as_numpy(name).flat for name in ("probabilities", "label", "class_id", "probability")),
        strict=True,
    ):
        assert word.decode() == f"{probability:f}:{index}:{label}"


def test_images_one_a_row(triton: Any, expected: list[list[dict[str, Any]]]) -> None:
    """Images may have the shape [N, 1], as clients of models with a batch dimension send them."""
    for binary in (True, False):
        column = np.array(IMAGES, object).reshape(3, 1)
        agrees(triton.infer("bundled", [triton_input("image", column, binary)]), expected)


def test_a_compressed_request_is_rejected(triton: Any) -> None:
    """A body in gzip is 415 in words that the client shows."""
    sent = triton_input("pixels", CROPS)
    with pytest.raises(InferenceServerException, match="gzip") as rejected:
        triton.infer("bundled", [sent], request_compression_algorithm="gzip")
    assert rejected.value.status() == "415"


# What is answered


def test_normalized_input_is_rounded_to_grey_levels(client: httpx.Client) -> None:
    """What lies between gray levels or beyond black and white is answered as the nearest of them."""
    rng = np.random.default_rng(0)
    off = rng.uniform(-0.4, 0.4, INPUTS["input"][1].shape) / 255 / np.reshape(PREPROCESSING.std, (3, 1, 1))
    moved = (INPUTS["input"][1] + off).astype(np.float32)
    assert outputs(client.post(INFER, json={"inputs": [tensor("input", data=moved.tolist())]})) == outputs(
        client.post(INFER, json={"inputs": [tensor("pixels")]})
    )
    extreme = np.full((1, 3, SIDE, SIDE), 3e38, np.float32)
    extreme[:, :, ::2] *= -1
    stripes = np.full((1, SIDE, SIDE, 3), 255, np.uint8)
    stripes[:, ::2] = 0
    sent = [
        tensor("input", shape=list(extreme.shape), data=extreme.tolist()),
        tensor("pixels", shape=list(stripes.shape), data=stripes.tolist()),
    ]
    beyond, white = (outputs(client.post(INFER, json={"inputs": [one]})) for one in sent)
    assert beyond == white


@pytest.mark.parametrize("name", ["pixels", "input"])
def test_data_may_be_flat_or_nested(client: httpx.Client, name: str) -> None:
    """In JSON, numbers one after another are the same tensor as numbers in rows."""
    flat = tensor(name, data=INPUTS[name][1].ravel().tolist())
    answers = [outputs(client.post(INFER, json={"inputs": [one]})) for one in (flat, tensor(name))]
    assert answers[0] == answers[1]


def test_only_what_is_asked_for(client: httpx.Client) -> None:
    """A request gets the outputs it names, in its order, some in binary and some not, and its id back."""
    message = {
        "id": "7",
        "inputs": [tensor("image", data=None, parameters={"binary_data_size": len(elements(*IMAGES))})],
        "outputs": [
            {"name": "probability"},
            {"name": "class_id", "parameters": {"binary_data": False}},
        ],
        "parameters": {"binary_data_output": True, "top_k": 1},
    }
    response = client.post(INFER, **binary_request(message, elements(*IMAGES)))
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers[LENGTH])
    answer = json.loads(response.content[:length])
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("bundled", "1", "7")
    probability, class_id = answer["outputs"]
    assert probability == {
        "name": "probability",
        "datatype": "FP32",
        "shape": [3, 1],
        "parameters": {"binary_data_size": 12},
    }
    assert (class_id["name"], class_id["shape"], len(class_id["data"])) == ("class_id", [3, 1], 3)
    assert np.frombuffer(response.content[length:], "<f4").min() > 0.1


def test_the_documents_example_is_answered(client: httpx.Client) -> None:
    """The request that the OpenAPI page proposes is answered as its response's example shows."""
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v2/models/{name}/infer"]["post"]
    response = client.post(INFER, json=operation["requestBody"]["content"]["application/json"]["example"])
    shown = document["components"]["schemas"]["InferResponse"]["example"]
    assert response.json().keys() == shown.keys()
    for output, example in zip(response.json()["outputs"], shown["outputs"], strict=True):
        assert output | {"data": 0} == example | {"data": 0}


def test_the_guides_examples_run(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Python and the commands that docs/serving.md shows print an answer."""
    page = (REPOSITORY / "docs/serving.md").read_text(encoding="utf-8")
    section = page.split("## Open Inference Protocol")[1].split("\n## ")[0]
    section = section.replace("localhost:8000", server.url.removeprefix("http://"))
    (tmp_path / "dog.jpg").write_bytes(encode(make_image(300, 200)))
    monkeypatch.chdir(tmp_path)
    [python] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(python, {})
    printed = capsys.readouterr().out
    commands = "\n".join(re.findall(r"^    (\S.*)", section.replace(python, ""), re.MULTILINE))
    shown = subprocess.run(["bash", "-c", commands], cwd=tmp_path, check=True, capture_output=True)
    label = json.loads(shown.stdout)["outputs"][2]["data"][0]
    assert f"[[b'{label}' b'" in printed


def test_requests_are_counted_by_their_routes(server: Running) -> None:
    """Metrics have the routes' templates, so that no client can make up labels."""
    for name in ("one", "two"):
        server.client.get(f"/v2/models/{name}")
    counted = server.metric("inference_request_seconds_count", route="/v2/models/{name}", status="404")
    assert counted >= 2
    assert "/v2/models/one" not in server.client.get("/metrics").text


# Batches


def test_a_request_shares_batches_with_predict(server: Running) -> None:
    """Three images of one request and one of /predict that come while the device is busy go together."""
    batches = server.metric("inference_batch_size_count")
    with ThreadPoolExecutor(3) as pool, server.runtime.held():
        first = pool.submit(server.client.post, "/predict", files=files(IMAGES[0]))
        assert server.runtime.begun.acquire(timeout=30)
        many = pool.submit(server.client.post, INFER, json={"inputs": [tensor("pixels")]})
        single = pool.submit(server.client.post, "/predict", files=files(IMAGES[0]))
        server.wait_for(lambda: server.metric("inference_queue_depth") == 4)
        server.runtime.release()
        assert {one.result().status_code for one in (first, many, single)} == {200}
    assert server.metric("inference_batch_size_count") - batches == 2


def test_a_request_larger_than_a_batch(expected: list[list[dict[str, Any]]]) -> None:
    """60 images are answered in order by a device that takes 4 and a queue that holds 4."""
    with serving(Settings(model="bundled", max_batch=4, max_queue=4)) as server:
        many = [tensor("pixels", shape=[60, SIDE, SIDE, 3], data=np.tile(CROPS, (20, 1, 1, 1)).tolist())]
        answer = outputs(server.client.post(INFER, json={"inputs": many, "parameters": {"top_k": 1}}))
        assert answer["class_id"] == [ranked[0]["class_id"] for ranked in expected] * 20
        assert server.metric("inference_images_total", outcome="ok") == 60


def test_a_client_that_hangs_up_is_not_run(server: Running) -> None:
    """The images of a client that left while they waited never reach the device."""
    cancelled = server.metric("inference_images_total", outcome="cancelled")
    run = server.metric("inference_batch_size_sum")
    with ThreadPoolExecutor(1) as pool, server.runtime.held():
        first = pool.submit(server.client.post, "/predict", files=files(IMAGES[0]))
        assert server.runtime.begun.acquire(timeout=30)
        leaver = send_only(server, json.dumps({"inputs": [tensor("image")]}).encode(), INFER)
        server.wait_for(lambda: server.metric("inference_queue_depth") == 3)
        leaver.close()
        server.wait_for(lambda: server.metric("inference_images_total", outcome="cancelled") == cancelled + 3)
        server.runtime.release()
        assert first.result().status_code == 200
    assert server.metric("inference_batch_size_sum") - run == 1


# What is rejected


@pytest.mark.parametrize(
    ("image", "status", "reason"),
    [(b"text", 415, "format"), (b"\xff\xd8\xff", 422, "broken"), (b"", 422, "empty")],
)
def test_a_bad_image_fails_its_request(client: httpx.Client, image: bytes, status: int, reason: str) -> None:
    """The error of an image has its index; the good ones beside it get no answer."""
    sent = tensor(data=in_base64(IMAGES[0], image, IMAGES[1]))
    rejected = error(client.post(INFER, json={"inputs": [sent]}), status)
    assert rejected.startswith("image[1]: ")
    assert reason in rejected


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(client: httpx.Client, value: float) -> None:
    """A normalized input with NaN or infinity is rejected with its index, which JSON could not even say."""
    values = INPUTS["input"][1].copy()
    values[2, 0, 0, 0] = value
    message = {"inputs": [tensor("input", data=None, parameters={"binary_data_size": values.nbytes})]}
    assert "input[2]" in error(client.post(INFER, **binary_request(message, values.tobytes())), 422)
    too_large = tensor("input", data=[1e300] * values.size)
    # All three are: which is found first is the threads' affair.
    assert re.match(r"input\[[012]\]: ", error(client.post(INFER, json={"inputs": [too_large]}), 422))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/resnet50", 404),
        ("GET", "/v2/models/bundled/versions/2", 404),
        ("GET", "/v2/models/bundled/versions/2/ready", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/bundled/versions/01/infer", 404),
        ("GET", "/v2/models/bundled/config", 404),
        ("GET", "/v2/nothing", 404),
        ("GET", INFER, 405),
        ("POST", "/v2", 405),
    ],
)
def test_what_is_not_there(client: httpx.Client, method: str, path: str, status: int) -> None:
    """Other models, versions, paths and methods are errors with the protocol's body."""
    error(client.request(method, path), status)


def nested(depth: int) -> bytes:
    return b'{"inputs": ' + b"[" * depth + b"]" * depth + b"}"


BODIES = {
    "nothing": b"",
    "no JSON": b"image",
    "no object": b"[]",
    "cut off": b'{"inputs": [',
    "too deep": nested(100_000),
    "deep": nested(150),
    "not UTF-8": b'{"id": "\xff", "inputs": []}',
    "half a surrogate": b'{"id": "\\ud800", "inputs": []}',
    "NaN": json.dumps({"inputs": [tensor()], "x": float("nan")}).encode(),
    "infinity": json.dumps({"inputs": [tensor("input", data=[float("-inf")] * CROPS.size)]}).encode(),
    "a number of 5000 digits": b'{"inputs": [{"name": "image", "shape": [' + b"9" * 5000 + b"]}]}",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_what_is_no_request(client: httpx.Client, body: bytes) -> None:
    """Bodies that are no JSON, or none that the protocol knows, are 422, and the service goes on."""
    error(client.post(INFER, content=body), 422)
    outputs(client.post(INFER, json={"inputs": [tensor()]}))


ENOUGH = CROPS.size
MESSAGES: dict[str, dict[str, Any]] = {
    "no inputs": {},
    "zero inputs": {"inputs": []},
    "null": {"inputs": None},
    "two inputs": {"inputs": [tensor("image"), tensor("pixels")]},
    "ten thousand inputs": {"inputs": [0] * 10_000},
    "no name": {"inputs": [tensor() | {"name": None}]},
    "an unknown name": {"inputs": [tensor("image") | {"name": "x" * 1000}]},
    "another datatype": {"inputs": [tensor("image", datatype="UINT8")]},
    "an unknown datatype": {"inputs": [tensor("pixels", datatype="INT4")]},
    "no shape": {"inputs": [tensor(shape=[])]},
    "no images": {"inputs": [tensor(shape=[0], data=[])]},
    "a negative shape": {"inputs": [tensor("pixels", shape=[-1, SIDE, SIDE, 3])]},
    "a shape of text": {"inputs": [tensor(shape=["3"])]},
    "a shape of fractions": {"inputs": [tensor(shape=[3.5])]},
    "a shape of truths": {"inputs": [tensor(shape=[True])]},
    "an absurd side": {"inputs": [tensor("pixels", shape=[3, 10**12, 10**12, 3])]},
    "many dimensions": {"inputs": [tensor("pixels", shape=[1] * 100_000)]},
    "channels first": {"inputs": [tensor("pixels", shape=[3, 3, SIDE, SIDE])]},
    "channels last": {"inputs": [tensor("input", shape=[3, SIDE, SIDE, 3])]},
    "two columns": {"inputs": [tensor(shape=[3, 2])]},
    "no data": {"inputs": [tensor(data=None)]},
    "data and a size": {"inputs": [tensor(parameters={"binary_data_size": 0})]},
    "a size of nothing that follows": {"inputs": [tensor(data=None, parameters={"binary_data_size": 9})]},
    "a negative size": {"inputs": [tensor(data=None, parameters={"binary_data_size": -1})]},
    "a size of text": {"inputs": [tensor(data=None, parameters={"binary_data_size": "9"})]},
    "data of text": {"inputs": [tensor(data="abc")]},
    "data of an object": {"inputs": [tensor("pixels", data={"0": 1})]},
    "too few images": {"inputs": [tensor(shape=[4])]},
    "too many images": {"inputs": [tensor(shape=[2])]},
    "no base64": {"inputs": [tensor(data=["!", "", ""])]},
    "base64 cut off": {"inputs": [tensor(data=["abc", "", ""])]},
    "base64 beyond ASCII": {"inputs": [tensor(data=["ä", "", ""])]},
    "numbers for images": {"inputs": [tensor(data=[1, 2, 3])]},
    "too few numbers": {"inputs": [tensor("pixels", data=[0] * (ENOUGH - 1))]},
    "too many numbers": {"inputs": [tensor("input", data=[0] * (ENOUGH + 1))]},
    "ragged rows": {"inputs": [tensor("pixels", data=[*CROPS[:2].tolist(), [[[0, 0, 0]]]])]},
    "rows and numbers": {"inputs": [tensor("pixels", data=[*CROPS[:2].tolist(), 0])]},
    "other rows": {"inputs": [tensor("pixels", data=CROPS.reshape(3, -1).tolist())]},
    "256": {"inputs": [tensor("pixels", data=[256] * ENOUGH)]},
    "below zero": {"inputs": [tensor("pixels", data=[-1] * ENOUGH)]},
    "fractions": {"inputs": [tensor("pixels", data=[0.5] * ENOUGH)]},
    "truths": {"inputs": [tensor("pixels", data=[True] * ENOUGH)]},
    "text for numbers": {"inputs": [tensor("input", data=["1"] * ENOUGH)]},
    "nulls": {"inputs": [tensor("input", data=[None] * ENOUGH)]},
    "numbers without end": {"inputs": [tensor("input", data=[10**400] * ENOUGH)]},
    "shared memory": {"inputs": [tensor(data=None, parameters={"shared_memory_region": "a"})]},
    "shared memory to answer in": {
        "inputs": [tensor()],
        "outputs": [{"name": "label", "parameters": {"shared_memory_region": "a"}}],
    },
    "an unknown output": {"inputs": [tensor()], "outputs": [{"name": "logits"}]},
    "an output twice": {"inputs": [tensor()], "outputs": [{"name": "label"}, {"name": "label"}]},
    "labels classified": {
        "inputs": [tensor()],
        "outputs": [{"name": "label", "parameters": {"classification": 1}}],
    },
    "no classes": {
        "inputs": [tensor()],
        "outputs": [{"name": "probabilities", "parameters": {"classification": 0}}],
    },
    "binary as text": {
        "inputs": [tensor()],
        "outputs": [{"name": "label", "parameters": {"binary_data": "yes"}}],
    },
    "top_k of 0": {"inputs": [tensor()], "parameters": {"top_k": 0}},
    "top_k of 11": {"inputs": [tensor()], "parameters": {"top_k": 11}},
    "top_k as text": {"inputs": [tensor()], "parameters": {"top_k": "5"}},
    "an id of numbers": {"id": 7, "inputs": [tensor()]},
    "parameters in a list": {"inputs": [tensor()], "parameters": []},
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_an_impossible_message(client: httpx.Client, message: dict[str, Any]) -> None:
    """What the protocol or the model does not know is 422 in few words, and the service goes on."""
    assert len(error(client.post(INFER, json=message), 422)) < 300
    outputs(client.post(INFER, json={"inputs": [tensor()]}))


def sized(name: str, size: int) -> dict[str, Any]:
    return {"inputs": [tensor(name, data=None, parameters={"binary_data_size": size})]}


GOOD = elements(*IMAGES)
BINARIES = {
    "no number": binary_request(sized("image", len(GOOD)), GOOD, "abc"),
    "an empty number": binary_request(sized("image", len(GOOD)), GOOD, ""),
    "a negative number": binary_request(sized("image", len(GOOD)), GOOD, -5),
    "longer than the body": binary_request(sized("image", len(GOOD)), GOOD, 10**9),
    "a thousand digits": binary_request(sized("image", len(GOOD)), GOOD, "9" * 1000),
    "nothing": binary_request(sized("image", len(GOOD)), GOOD, 0),
    "into the JSON": binary_request(sized("image", len(GOOD)), GOOD, 10),
    "into the data": binary_request(sized("image", len(GOOD)), GOOD, 500),
    "less than it says": binary_request(sized("image", len(GOOD)), GOOD[:-1]),
    "more than it says": binary_request(sized("image", len(GOOD)), GOOD + b"x"),
    "unannounced": binary_request({"inputs": [tensor("image")]}, b"x"),
    "an element without end": binary_request(sized("image", 6), b"\xff\xff\xff\xff12"),
    "an element too few": binary_request(sized("image", 8), elements(b"", b"")),
    "an element too many": binary_request(sized("image", 16), elements(b"", b"", b"", b"")),
    "half a length": binary_request(sized("image", 3), b"\0\0\0"),
    "a byte too few": binary_request(sized("pixels", ENOUGH - 1), b"\0" * (ENOUGH - 1)),
    "bytes for floats": binary_request(sized("input", ENOUGH), b"\0" * ENOUGH),
}


@pytest.mark.parametrize("request_", BINARIES.values(), ids=BINARIES)
def test_binary_data_that_do_not_add_up(client: httpx.Client, request_: dict[str, Any]) -> None:
    """Lengths that contradict each other or the body are 422, and the service goes on."""
    error(client.post(INFER, **request_), 422)
    outputs(client.post(INFER, json={"inputs": [tensor()]}))


def test_too_much_of_everything(client: httpx.Client) -> None:
    """Too many images, however few bytes they take, and too much in JSON are 413."""
    many = tensor("image", shape=[65], data=[""] * 65)
    assert "64" in error(client.post(INFER, json={"inputs": [many]}), 413)
    most = tensor("image", shape=[10**30])
    assert "64" in error(client.post(INFER, json={"inputs": [most]}), 413)
    for name, part in (
        ("values", b"1," * 500_000),
        ("lists", b"[" * 200_000),
        ("objects", b"{" * 200_000),
        ("names", b'"":' * 50_000),
        ("escapes", b"\\/" * 1_000_000),
    ):
        assert f"0 {name} in JSON" in error(client.post(INFER, content=part), 413)


# Overload and failure


@pytest.fixture(scope="module")
def strict_server() -> Iterator[Running]:
    """A server that takes a tenth of a megabyte within half a second, and holds two images."""
    settings = Settings(model="bundled", max_upload_mb=0.1, read_timeout_s=0.5, max_queue=2, max_batch=2)
    with serving(settings) as running:
        yield running


def test_a_full_queue_is_429_with_retry_after(strict_server: Running) -> None:
    """When the queue is full a request is rejected at once, whole, and told when to come back."""
    with ThreadPoolExecutor(2) as pool, strict_server.runtime.held():
        accepted = [pool.submit(strict_server.client.post, "/predict", files=files(IMAGES[0]))]
        assert strict_server.runtime.begun.acquire(timeout=30)
        accepted.append(pool.submit(strict_server.client.post, INFER, json={"inputs": [tensor()]}))
        strict_server.wait_for(lambda: strict_server.metric("inference_queue_depth") == 2)
        rejected = strict_server.client.post(INFER, json={"inputs": [tensor()]})
        error(rejected, 429)
        assert int(rejected.headers["retry-after"]) >= 1
        strict_server.runtime.release()
        assert [one.result().status_code for one in accepted] == [200, 200]


@pytest.mark.parametrize(
    ("head", "chunk", "status"),
    [("Content-Length: 900000000", b"", 413), ("Content-Length: 1000", b"x", 408)],
)
def test_a_body_that_is_too_large_or_too_slow(
    strict_server: Running, head: str, chunk: bytes, status: int
) -> None:
    """A body over the limit, or that does not arrive in time, is rejected while it is being read."""
    answer = oversized(strict_server, f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n", chunk, 1)
    assert answer.startswith(f"HTTP/1.1 {status}".encode())
    assert b'{"error":' in answer


def test_an_error_of_the_model_names_no_internals(server: Running) -> None:
    """A failing batch is a 500 with the index of an image, and the next request is answered."""
    server.runtime.error = RuntimeError("secret detail")
    try:
        rejected = error(server.client.post(INFER, json={"inputs": [tensor("pixels")]}), 500)
    finally:
        server.runtime.error = None
    assert rejected.startswith("pixels[")
    assert "secret" not in rejected
    outputs(server.client.post(INFER, json={"inputs": [tensor("pixels")]}))


def test_a_deadline_is_504() -> None:
    """A request that the device does not answer in time is 504."""
    with serving(Settings(model="bundled", request_timeout_s=0.2)) as server, server.runtime.held():
        error(server.client.post(INFER, json={"inputs": [tensor()]}), 504)


def test_a_draining_server_is_alive_and_not_ready() -> None:
    """The protocol's probes say what /healthz and /readyz say."""
    with serving(Settings(model="bundled")) as server:
        server.service.engine.begin_drain()
        assert server.client.get("/v2/health/live").json() == {"live": True}
        for path in ("/v2/health/ready", "/v2/models/bundled/ready"):
            rejected = server.client.get(path)
            error(rejected, server.client.get("/readyz").status_code)
            assert "retry-after" in rejected.headers
        with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as triton:
            assert triton.is_server_live()
            assert not triton.is_server_ready()
