"""Triton's statistics: the numbers add up to what the clients sent, in one process and with HTTP workers."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from resnet_service.settings import Settings
from tests.support.http import files, reset, send_only
from tests.support.server import Running, serving
from tests.support.v2 import IMAGES, INFER_PATH, base64_strings, json_input

KEY = "statistics-0123456789"
HEADERS = {"X-API-Key": KEY}
MESSAGE = {"inputs": [json_input()]}


@pytest.fixture(scope="module", params=[0, 2], ids=["one process", "two workers"])
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    """Yield a server of each kind; `max_queue` makes rejections exact."""
    settings = Settings(
        model="cifar10",
        workers=request.param,
        max_queue=3,
        max_batch=4,
        api_keys=f"{KEY} predict admin",
        public_scopes="metrics",
    )
    with serving(settings) as running:
        running.client.headers.update(HEADERS)
        yield running


def statistics(server: Running) -> Any:
    """Return the statistics of the only model, as Triton's client reads them."""
    with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as triton:
        [model] = triton.get_inference_statistics(headers=HEADERS)["model_stats"]
    assert (model["name"], model["version"]) == ("cifar10", "1")
    return model


def batch_counts(server: Running) -> Counter[int]:
    """Return how many batches of each size were run."""
    batches = statistics(server)["batch_stats"]
    for batch in batches:
        counts = {batch[part]["count"] for part in ("compute_input", "compute_infer", "compute_output")}
        assert counts == {batch["compute_infer"]["count"]}
    return Counter({batch["batch_size"]: batch["compute_infer"]["count"] for batch in batches})


def numbers(server: Running) -> dict[str, int]:
    """Return the counts of the statistics, and the images of all batches."""
    model = statistics(server)
    counts = {name: one["count"] for name, one in model["inference_stats"].items()}
    assert len({counts[name] for name in ("success", "queue", "compute_input", "compute_infer")}) == 1
    assert counts["compute_output"] == counts["success"]
    batches = batch_counts(server)
    assert model["execution_count"] == batches.total()
    return {
        "inferences": model["inference_count"],
        "success": counts["success"],
        "fail": counts["fail"],
        "cached": counts["cache_hit"] + counts["cache_miss"],
        "executions": model["execution_count"],
        "images_in_batches": sum(size * count for size, count in batches.items()),
    }


@contextmanager
def growing(server: Running, **expected: int | None) -> Iterator[None]:
    """Check that the numbers grow in the block by these values, and the others not at all; None is any."""
    before = numbers(server)
    yield
    increase = {name: expected.get(name, 0) for name in before}

    def grown() -> dict[str, int | None]:
        grown = {name: value - before[name] for name, value in numbers(server).items()}
        return {name: None if increase[name] is None else value for name, value in grown.items()}

    # A request counts once its response is sent, and its client may be faster.
    server.wait_for(lambda: all(grown()[name] == increase[name] for name in ("success", "fail")))
    assert grown() == increase


def post(server: Running, path: str, **body: Any) -> httpx.Response:
    """Send a request over its own connection, so that any worker may get it."""
    return httpx.post(f"{server.url}{path}", headers=HEADERS, timeout=60, **body)


def test_requests_of_all_routes_add_up(server: Running) -> None:
    """Single images and several, over /v2, /predict and /predict/batch; an image that fails has no result."""
    started_ms = time.time() * 1000
    before = numbers(server)["executions"]
    with growing(server, success=16, inferences=28, executions=None, images_in_batches=28):
        for _ in range(4):  # over several connections, so that both workers get some
            with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as triton:
                for count in (1, 3):
                    images = tritonclient.http.InferInput("image", [count], "BYTES")
                    images.set_data_from_numpy(np.array(IMAGES[:count], object))
                    result = triton.infer("cifar10", [images], headers={**HEADERS})
                    assert len(result.as_numpy("label")) == count
            assert post(server, "/predict", files=files(IMAGES[0])).status_code == 200
            results = post(server, "/predict/batch", files=files(b"text", *IMAGES[:2])).json()["results"]
            assert ["error" in result for result in results] == [True, False, False]
    assert 16 <= numbers(server)["executions"] - before <= 28
    assert started_ms <= statistics(server)["last_inference"] <= time.time() * 1000


def test_batches_are_counted_by_size(server: Running) -> None:
    """Three images that wait while another one is on the device form one batch."""
    before = batch_counts(server)
    with ThreadPoolExecutor(2) as pool, server.runtime.held():
        first = pool.submit(post, server, "/predict", files=files(IMAGES[0]))
        assert server.runtime.begun.acquire(timeout=30)
        second = pool.submit(post, server, INFER_PATH, json=MESSAGE)
        server.wait_for(lambda: server.metric("inference_queue_depth") == 3)
        server.runtime.release()
        assert [future.result().status_code for future in (first, second)] == [200, 200]
    after = batch_counts(server)
    assert {size: after[size] - before[size] for size in after if after[size] > before[size]} == {1: 1, 3: 1}


def test_requests_that_fail_are_counted_once(server: Running) -> None:
    """Invalid images and messages, a request that is too late, and failures of the device."""
    with growing(server, fail=5):
        message = {"inputs": [json_input(shape=[1], data=base64_strings(b"text"))]}
        assert post(server, INFER_PATH, json=message).status_code == 415
        assert post(server, "/predict", files=files(b"\xff\xd8\xff")).status_code == 422
        assert post(server, INFER_PATH, content=b"{").status_code == 422
        try:
            with server.runtime.held():
                late = MESSAGE | {"parameters": {"timeout": 50_000}}
                assert post(server, INFER_PATH, json=late).status_code == 504
                server.runtime.error = RuntimeError("broken")  # of the batch with the late images, too
            assert post(server, "/predict", files=files(IMAGES[0])).status_code == 500
        finally:
            server.runtime.error = None


def test_rejected_and_cancelled_requests_are_failures(server: Running) -> None:
    """One that finds the queue full, and one whose client disconnects; the first one succeeds."""
    numbers = {"success": 1, "inferences": 1, "executions": 1, "images_in_batches": 1, "fail": 2}
    with ThreadPoolExecutor(1) as pool, growing(server, **numbers), server.runtime.held():
        first = pool.submit(post, server, "/predict", files=files(IMAGES[0]))
        assert server.runtime.begun.acquire(timeout=30)
        body = json.dumps(MESSAGE).encode()
        connection = send_only(server, body, INFER_PATH, key=KEY)
        server.wait_for(lambda: server.metric("inference_queue_depth") == 3)
        assert post(server, "/predict", files=files(IMAGES[0])).status_code == 429
        reset(connection)
        server.wait_for(lambda: server.metric("inference_queue_depth") == 0)
        server.runtime.release()
        assert first.result().status_code == 200


def test_requests_that_are_not_for_the_model_do_not_count(server: Running) -> None:
    """Those without a valid key, for an unknown model or version, and those that are not for inference."""
    with growing(server):
        assert httpx.post(f"{server.url}/predict", files=files(IMAGES[0])).status_code == 401
        for path in ("/v2/models/other/infer", "/v2/models/cifar10/versions/2/infer"):
            assert post(server, path, json=MESSAGE).status_code == 404
        assert server.client.get("/v2/models/cifar10").status_code == 200


def test_durations_are_those_of_the_stages(server: Running) -> None:
    """While the device is held, the time is spent on it, and the next request waits for it in the queue."""
    before = statistics(server)
    with ThreadPoolExecutor(2) as pool, server.runtime.held():
        futures = [pool.submit(post, server, "/predict", files=files(IMAGES[0]))]
        assert server.runtime.begun.acquire(timeout=30)
        futures.append(pool.submit(post, server, "/predict", files=files(IMAGES[1])))
        server.wait_for(lambda: server.metric("inference_queue_depth") == 1)
        held_at = time.perf_counter()
        while time.perf_counter() - held_at < 0.3:
            server.client.get("/healthz")
        server.runtime.release()
        assert [future.result().status_code for future in futures] == [200, 200]
    server.wait_for(
        lambda: (
            statistics(server)["inference_stats"]["success"]["count"]
            == before["inference_stats"]["success"]["count"] + 2
        )
    )
    after = statistics(server)
    seconds = {
        name: (one["ns"] - before["inference_stats"][name]["ns"]) / 1e9
        for name, one in after["inference_stats"].items()
    }
    assert seconds["queue"] >= 0.29
    assert seconds["compute_infer"] >= 0.3
    assert seconds["compute_input"] > 0
    assert seconds["compute_output"] > 0
    stages = sum(seconds[name] for name in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert stages <= seconds["success"] < 20
    assert seconds["fail"] == 0

    def batch_ns(model: Any) -> int:
        return sum(one["compute_infer"]["ns"] for one in model["batch_stats"])

    assert batch_ns(after) - batch_ns(before) >= 0.3e9


def test_statistics_of_model_and_version_are_those_of_all_models(server: Running) -> None:
    """There is one model with one version; others are unknown."""
    with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as triton:
        everything = triton.get_inference_statistics(headers=HEADERS)
        assert triton.get_inference_statistics("cifar10", headers=HEADERS) == everything
        assert triton.get_inference_statistics("cifar10", "1", headers=HEADERS) == everything
        for arguments in (("other",), ("cifar10", "2")):
            with pytest.raises(InferenceServerException, match="unknown"):
                triton.get_inference_statistics(*arguments, headers=HEADERS)
        with pytest.raises(InferenceServerException) as error:
            triton.get_inference_statistics("cifar10")
        assert error.value.status() == "401"


def test_reload_keeps_the_statistics(server: Running) -> None:
    """They count since the service started, so that differences between two readings are never negative."""
    with growing(server, success=2, inferences=2, executions=2, images_in_batches=2):
        assert post(server, "/predict", files=files(IMAGES[0])).status_code == 200
        assert post(server, "/reload").status_code == 200
        assert post(server, "/predict", files=files(IMAGES[0])).status_code == 200
