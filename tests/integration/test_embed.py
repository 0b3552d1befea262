"""Embeddings from a real server: POST /embed, and the output `embedding` over /v2 and gRPC."""

import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import tritonclient.grpc
import tritonclient.http
from torchvision.models.feature_extraction import create_feature_extractor

from resnet_service.client import APIError, Client
from resnet_service.models import load_model
from resnet_service.settings import Settings
from tests.support import PHOTOGRAPHS, REPOSITORY
from tests.support.http import assert_problem, files
from tests.support.server import Running, serving
from tests.support.v2 import CROPS, IMAGES, INFER_PATH, error_message, json_input, normalize, output_data

DIMENSIONS = 512
BINARY = {"accept": "application/octet-stream"}
Vector = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Yield a server with a port for gRPC, which computes in fp32."""
    with serving(Settings(model="cifar10", precision="fp32"), grpc=True) as running:
        yield running


@pytest.fixture(scope="module")
def expected() -> Vector:
    """Return the embeddings of the images as torchvision extracts them from the network."""
    extractor = create_feature_extractor(load_model("cifar10").network, {"flatten": "embedding"})
    with torch.inference_mode():
        result: Vector = extractor(torch.from_numpy(normalize(CROPS)))["embedding"].numpy()
    return result


def embed(server: Running, image: bytes, query: str = "") -> dict[str, Any]:
    response = server.client.post(f"/embed{query}", files=files(image))
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def test_embedding_is_that_of_feature_extraction(server: Running, expected: Vector) -> None:
    """The response has the embedding, its length, the model, the device and the duration of each stage."""
    for image, vector in zip(IMAGES, expected, strict=True):
        body = embed(server, image)
        assert set(body) == {"embedding", "dimensions", "model", "version", "device", "timing_ms"}
        assert (body["dimensions"], body["model"], body["version"]) == (DIMENSIONS, "cifar10", "1")
        assert body["timing_ms"]["total"] >= body["timing_ms"]["device"] > 0
        assert np.array(body["embedding"]) == pytest.approx(vector, abs=1e-3)


def test_form_raw_body_and_binary_response_have_the_same_values(server: Running) -> None:
    """JSON has the exact float32 values, which the binary response has alone, little-endian."""
    body = embed(server, IMAGES[0])
    raw = server.client.post("/embed", content=IMAGES[0], headers={"content-type": "image/jpeg"})
    binary = server.client.post("/embed", files=files(IMAGES[0]), headers=BINARY)
    assert raw.json()["embedding"] == body["embedding"]
    assert binary.headers["content-type"] == "application/octet-stream"
    assert np.frombuffer(binary.content, "<f4").tolist() == body["embedding"]
    stages = [entry.split(";")[0] for entry in binary.headers["server-timing"].split(", ")]
    assert stages == ["read", "decode", "queue", "device", "total"]


def test_normalized_embedding_has_the_length_1(server: Running) -> None:
    """`normalize` scales the embedding, in the query or the form; both must agree."""
    vector, unit = (np.array(embed(server, IMAGES[0], query)["embedding"]) for query in ("", "?normalize=1"))
    assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-6)
    assert unit * np.linalg.norm(vector) == pytest.approx(vector, abs=1e-5)
    form = server.client.post("/embed", files=files(IMAGES[0]), data={"normalize": "true"})
    assert form.json()["embedding"] == unit.tolist()
    conflict = server.client.post("/embed?normalize=0", files=files(IMAGES[0]), data={"normalize": "true"})
    assert "normalize is False in the query and True in the body" in assert_problem(
        conflict, 422, "invalid-request"
    )


def test_requests_for_embeddings_share_batches_with_others(server: Running, expected: Vector) -> None:
    """Images of /embed, /predict and /v2 that wait for the device run as one batch, each with its result."""
    before = server.metric("inference_batch_size_count"), server.metric("inference_batch_size_sum")
    with server.runtime.held(), ThreadPoolExecutor(8) as pool:
        first = pool.submit(server.client.post, "/predict", files=files(IMAGES[0]))
        assert server.runtime.begun.acquire(timeout=30)
        embeddings = [pool.submit(embed, server, image) for image in IMAGES]
        predictions = [pool.submit(server.client.post, "/predict", files=files(image)) for image in IMAGES]
        waiting = pool.submit(
            server.client.post,
            INFER_PATH,
            json={"inputs": [json_input()], "outputs": [{"name": "embedding"}]},
        )
        server.wait_for(lambda: server.metric("inference_queue_depth") == 9)
        server.runtime.release()
        assert first.result().status_code == 200
        for future, vector in zip(embeddings, expected, strict=True):
            assert np.array(future.result()["embedding"]) == pytest.approx(vector, abs=1e-3)
        for prediction in predictions:
            assert set(prediction.result().json()) == {
                *("predictions", "model", "version", "device", "timing_ms")
            }
        values = np.reshape(output_data(waiting.result())["embedding"], expected.shape)
        assert values == pytest.approx(expected, abs=1e-3)
    after = server.metric("inference_batch_size_count"), server.metric("inference_batch_size_sum")
    assert (after[0] - before[0], after[1] - before[1]) == (2, 10)


def test_embedding_is_an_output_of_the_open_inference_protocol(server: Running, expected: Vector) -> None:
    """Over REST, in JSON and binary, and over gRPC; requests that name no outputs do not get it."""
    message = {"inputs": [json_input()], "outputs": [{"name": "embedding"}, {"name": "label"}]}
    [embedding, label] = server.client.post(INFER_PATH, json=message).json()["outputs"]
    assert (embedding["datatype"], embedding["shape"]) == ("FP32", [3, DIMENSIONS])
    assert np.reshape(embedding["data"], expected.shape) == pytest.approx(expected, abs=1e-3)
    assert label["shape"] == [3, 5]
    for module, url in ((tritonclient.http, server.url), (tritonclient.grpc, f"http://{server.grpc_url}")):
        tensor = module.InferInput("pixels", list(CROPS.shape), "UINT8")
        tensor.set_data_from_numpy(CROPS)
        requested = [module.InferRequestedOutput("embedding")]
        with module.InferenceServerClient(url.removeprefix("http://")) as triton:
            result = triton.infer("cifar10", [tensor], outputs=requested)
            assert result.as_numpy("embedding") == pytest.approx(expected, abs=1e-3)
            assert triton.infer("cifar10", [tensor]).as_numpy("embedding") is None
    metadata = server.client.get("/v2/models/cifar10").json()["outputs"]
    assert metadata[-1] == {"name": "embedding", "datatype": "FP32", "shape": [-1, DIMENSIONS]}
    assert server.client.get("/info").json()["embedding_size"] == DIMENSIONS


@pytest.mark.parametrize("parameter", ["top_k", "classification"])
def test_embedding_has_no_number_of_classes(server: Running, parameter: str) -> None:
    """Parameters for classes are errors for this output."""
    output = {"name": "embedding", "parameters": {parameter: 2}}
    response = server.client.post(INFER_PATH, json={"inputs": [json_input()], "outputs": [output]})
    assert parameter in error_message(response, 422)


@pytest.mark.parametrize(
    ("query", "status", "kind", "detail"),
    [
        ("?top_k=3", 422, "invalid-request", "unknown parameter 'top_k'"),
        ("?normalize=maybe", 422, "invalid-request", "normalize"),
        ("?model=other", 404, "model-not-found", "other"),
        ("?timeout_ms=0", 422, "invalid-request", "timeout_ms"),
    ],
)
def test_invalid_query_is_rejected(server: Running, query: str, status: int, kind: str, detail: str) -> None:
    """Parameters are those of /predict, without top_k and with normalize."""
    response = server.client.post(f"/embed{query}", files=files(IMAGES[0]))
    assert detail in assert_problem(response, status, kind)


def test_invalid_body_is_rejected(server: Running) -> None:
    """Errors of the image and the form are those of /predict."""
    post = server.client.post
    assert_problem(post("/embed", files=files(b"no image")), 415, "unsupported-media-type")
    assert "got 2" in assert_problem(post("/embed", files=files(*IMAGES[:2])), 422, "invalid-request")
    with_field = post("/embed", files=files(IMAGES[0]), data={"top_k": "3"})
    assert "top_k" in assert_problem(with_field, 422, "invalid-request")


def test_embedding_counts_as_inference(server: Running) -> None:
    """Images, durations of stages and Triton's statistics count requests for embeddings."""

    def counts() -> list[float]:
        statistics = server.client.get("/v2/models/cifar10/stats").json()["model_stats"][0]
        return [
            server.metric("inference_images_total", outcome="ok"),
            server.metric("inference_request_seconds_count", route="/embed", status="200"),
            statistics["inference_stats"]["success"]["count"],
        ]

    before = counts()
    embed(server, IMAGES[0])
    assert [after - earlier for after, earlier in zip(counts(), before, strict=True)] == [1, 1, 1]


def test_client_returns_the_embedding(server: Running, expected: Vector) -> None:
    """`Client.embed` sends an image, and raises the service's errors."""
    with Client(server.url) as client:
        body = client.embed(IMAGES[0])
        assert np.array(body.embedding) == pytest.approx(expected[0], abs=1e-3)
        assert np.linalg.norm(client.embed(IMAGES[0], normalize=True).embedding) == pytest.approx(1, abs=1e-6)
        with pytest.raises(APIError, match="other"):
            client.embed(IMAGES[0], model="other")


def test_example_of_the_serving_guide_finds_the_most_similar_image(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The search ranks the photograph that is in the folder as well first, with the similarity 1."""
    page = (REPOSITORY / "docs/serving.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page.split("## Embeddings")[1].split("\n## ")[0], re.DOTALL)
    shutil.copytree(PHOTOGRAPHS, tmp_path / "photos")
    shutil.copy(PHOTOGRAPHS / "dog.jpg", tmp_path / "dog.jpg")
    monkeypatch.chdir(tmp_path)
    exec(code.replace("http://localhost:8000", server.url), {})
    ranking = re.findall(r"^(\S+) photos/(\w+)\.jpg$", capsys.readouterr().out, re.MULTILINE)
    assert ranking[0] == ("1.000", "dog")
    assert len(ranking) == 3


def test_model_without_an_embedding_says_so(tmp_path: Path) -> None:
    """It classifies, /embed is rejected before the body is read, and /v2 does not have the output."""
    pytest.importorskip("onnx", reason="requires the extra onnx")
    from onnx import helper

    from tests.support.onnx import small_graph, write

    proto = small_graph()
    proto.graph.node[-1].CopyFrom(helper.make_node("Relu", ["logits"], ["output"]))
    image = (PHOTOGRAPHS / "coffee.jpg").read_bytes()
    with serving(Settings(model=str(write(tmp_path / "small.onnx", proto)))) as running:
        assert running.client.post("/predict", files=files(image)).status_code == 200
        response = running.client.post("/embed", content=b"", headers={"content-type": "image/jpeg"})
        assert "the model 'small' has no embedding" in assert_problem(response, 422, "invalid-request")
        message = {"inputs": [json_input()], "outputs": [{"name": "embedding"}]}
        response = running.client.post("/v2/models/small/infer", json=message)
        assert "unknown output 'embedding'" in error_message(response, 422)
        assert running.client.get("/info").json()["embedding_size"] is None
