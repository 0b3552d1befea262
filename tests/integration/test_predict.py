"""POST /predict and /predict/batch on a real server: predictions, batching, and errors of single requests."""

import asyncio
import json
import math
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from resnet_service.settings import Settings
from tests.support import PHOTOGRAPHS
from tests.support.http import assert_problem, files, reset, send_only
from tests.support.images import encode, make_image
from tests.support.server import Running, serving


def test_predict_returns_the_most_probable_classes_first(server: Running, jpeg: bytes) -> None:
    """A form upload gets the top-5 classes, the model, the device and the duration of each stage."""
    response = server.client.post("/predict", files=files(jpeg))
    assert response.status_code == 200
    body = response.json()
    assert set(body) == {"predictions", "model", "version", "device", "timing_ms"}
    assert set(body["timing_ms"]) == {"decode", "queue", "device", "total"}
    assert body["timing_ms"]["total"] >= body["timing_ms"]["device"] > 0
    probabilities = [prediction["probability"] for prediction in body["predictions"]]
    assert len(probabilities) == 5
    assert probabilities == sorted(probabilities, reverse=True)
    stages = [entry.split(";")[0] for entry in response.headers["server-timing"].split(", ")]
    assert stages == ["read", "decode", "queue", "device", "total"]


def test_imagenet_model_is_served_without_a_download() -> None:
    """efficientnet_lite0 recognizes a cup of coffee, and responses and /info name it."""
    coffee = (PHOTOGRAPHS / "coffee.jpg").read_bytes()
    with serving(Settings(model="efficientnet_lite0")) as running:
        body = running.client.post("/predict", files=files(coffee)).json()
        info = running.client.get("/info").json()
    assert body["model"] == info["model"] == "efficientnet_lite0"
    assert (info["labels"], info["source"]) == (1000, "efficientnet-lite0-57934424.pth")
    assert body["predictions"][0]["label"] == "espresso"
    assert body["predictions"][0]["probability"] > 0.9


def test_raw_body_gets_the_same_predictions_as_a_form(server: Running, jpeg: bytes) -> None:
    """An image sent as the body is classified like the same image in a form."""
    raw = server.client.post("/predict", content=jpeg, headers={"content-type": "image/jpeg"})
    form = server.client.post("/predict", files=files(jpeg))
    assert raw.json()["predictions"] == form.json()["predictions"]


def test_top_k_can_return_all_classes(server: Running, jpeg: bytes) -> None:
    """If top_k is the number of classes, the probabilities sum to one."""
    classes = server.client.get("/info").json()["labels"]
    predictions = server.client.post(f"/predict?top_k={classes}", files=files(jpeg)).json()["predictions"]
    assert sorted(prediction["class_id"] for prediction in predictions) == list(range(classes))
    assert sum(prediction["probability"] for prediction in predictions) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
@pytest.mark.parametrize("top_k", ["0", "-1", "1000000", "five", ""])
def test_top_k_out_of_range_is_422(server: Running, jpeg: bytes, path: str, top_k: str) -> None:
    """top_k must be an integer from 1 to the number of classes."""
    response = server.client.post(f"{path}?top_k={top_k}", files=files(jpeg))
    assert "top_k" in assert_problem(response, 422, "invalid-request")


def test_predict_with_two_images_is_422(server: Running, jpeg: bytes) -> None:
    """/predict rejects two images and names /predict/batch, instead of ignoring one image."""
    response = server.client.post("/predict", files=files(jpeg, jpeg))
    assert "/predict/batch" in assert_problem(response, 422, "invalid-request")


def test_batch_returns_results_in_request_order(server: Running, jpeg: bytes) -> None:
    """Valid images get predictions and invalid images an error each, in the order of the request."""
    other = encode(make_image(seed=5), "PNG")
    response = server.client.post("/predict/batch?top_k=2", files=files(jpeg, b"text", other, b""))
    assert response.status_code == 200
    results = response.json()["results"]
    assert [result["filename"] for result in results] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert [result.get("error", {}).get("status") for result in results] == [None, 415, None, 422]
    for image, result in ((jpeg, results[0]), (other, results[2])):
        predictions = server.client.post("/predict?top_k=2", files=files(image)).json()["predictions"]
        assert_same_predictions(result["predictions"], predictions)


def assert_same_predictions(actual: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert [entry["class_id"] for entry in actual] == [entry["class_id"] for entry in expected]
    probabilities = [entry["probability"] for entry in expected]
    assert [entry["probability"] for entry in actual] == pytest.approx(probabilities, abs=1e-3)


def test_concurrent_requests_share_batches(server: Running, jpeg: bytes) -> None:
    """63 requests that wait for the device run in as few batches as possible, with equal predictions."""
    batches = server.metric("inference_batch_size_count")
    with ThreadPoolExecutor(64) as pool, server.runtime.held():
        first = pool.submit(server.client.post, "/predict", files=files(jpeg))
        assert server.runtime.begun.acquire(timeout=30)
        others = [pool.submit(server.client.post, "/predict", files=files(jpeg)) for _ in range(63)]
        server.wait_for(lambda: server.metric("inference_queue_depth") == 63)
        server.runtime.release()
        rankings = [future.result().json()["predictions"] for future in [first, *others]]
    largest = server.metric("inference_largest_batch")  # 32, or the size that the warm-up found useful
    assert server.metric("inference_batch_size_count") - batches == 1 + math.ceil(63 / largest)
    for ranking in rankings:
        assert ranking[0]["class_id"] == rankings[0][0]["class_id"]
        probabilities = [entry["probability"] for entry in rankings[0]]
        assert [entry["probability"] for entry in ranking] == pytest.approx(probabilities, abs=1e-3)


def test_image_of_a_disconnected_client_is_not_run(server: Running, jpeg: bytes) -> None:
    """If the client disconnects while its image waits, the image is dropped from the queue, and only it."""

    def disconnected_requests() -> float:
        return server.metric("inference_request_seconds_count", route="/predict", status="499")

    cancelled = server.metric("inference_images_total", outcome="cancelled")
    disconnected = disconnected_requests()
    images = server.metric("inference_batch_size_sum")
    with ThreadPoolExecutor(2) as pool, server.runtime.held():
        first = pool.submit(server.client.post, "/predict", files=files(jpeg))
        assert server.runtime.begun.acquire(timeout=30)
        connection = send_only(server, jpeg)
        second = pool.submit(server.client.post, "/predict", files=files(jpeg))
        server.wait_for(lambda: server.metric("inference_queue_depth") == 2)
        reset(connection)
        server.wait_for(lambda: server.metric("inference_images_total", outcome="cancelled") == cancelled + 1)
        server.runtime.release()
        assert first.result().status_code == second.result().status_code == 200
    assert server.metric("inference_batch_size_sum") - images == 2
    assert disconnected_requests() == disconnected + 1


def test_model_error_is_500_and_later_requests_succeed(server: Running, jpeg: bytes) -> None:
    """If a batch fails, its requests get 500 without internals, and the next request succeeds."""
    server.runtime.error = RuntimeError("secret detail")
    try:
        response = server.client.post("/predict", files=files(jpeg))
    finally:
        server.runtime.error = None
    assert "secret" not in assert_problem(response, 500, "inference-failed")
    assert server.client.post("/predict", files=files(jpeg)).status_code == 200


def test_concurrent_clients_get_the_predictions_of_their_own_images(server: Running) -> None:
    """100 requests over 50 connections all succeed, each with the predictions of its own image."""
    images = [encode(make_image(seed=seed)) for seed in range(10)]

    async def send_all() -> list[list[int]]:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=50)) as client:
            requests = (client.post(f"{server.url}/predict", files=files(images[n % 10])) for n in range(100))
            responses = await asyncio.gather(*requests)
        return [[p["class_id"] for p in json.loads(response.text)["predictions"]] for response in responses]

    rankings = asyncio.run(send_all())
    for n, ranking in enumerate(rankings):
        assert ranking == rankings[n % 10]
