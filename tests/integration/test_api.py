"""The HTTP API over a real server: answers, errors, metrics."""

import asyncio
import json
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from typing import Any

import httpx
import pytest

from resnet_service.errors import DeviceError
from resnet_service.models import load_model
from resnet_service.settings import Settings
from tests.support.http import files, oversized, send_only
from tests.support.images import bomb, encode, make_image
from tests.support.server import Running, serving

PROBLEM = "application/problem+json"


@pytest.fixture
def client(server: Running) -> httpx.Client:
    return server.client


@cache
def documented(origin: str) -> dict[str, Any]:
    return dict(httpx.get(f"{origin}/openapi.json").json()["paths"])


def problem(response: httpx.Response, status: int, kind: str) -> str:
    """Check that this is a problem of this status and kind, and documented; return its detail."""
    assert response.status_code == status, response.text
    operation = documented(str(response.url.join("/")).rstrip("/"))[response.url.path]
    assert str(status) in operation[response.request.method.lower()]["responses"]
    assert response.headers["content-type"] == PROBLEM
    body = response.json()
    assert body["status"] == status
    assert body["type"].endswith(kind)
    return str(body["detail"])


# What is answered


def test_predict_answers_the_best_classes(client: httpx.Client, jpeg: bytes) -> None:
    """A form upload gets top-5 classes, best first, with model, device and the time of each stage."""
    response = client.post("/predict", files=files(jpeg))
    assert response.status_code == 200
    body = response.json()
    assert set(body) == {"predictions", "model", "device", "timing_ms"}
    assert set(body["timing_ms"]) == {"decode", "queue", "device", "total"}
    assert body["timing_ms"]["total"] >= body["timing_ms"]["device"] > 0
    probabilities = [prediction["probability"] for prediction in body["predictions"]]
    assert len(probabilities) == 5
    assert probabilities == sorted(probabilities, reverse=True)
    stages = [entry.split(";")[0] for entry in response.headers["server-timing"].split(", ")]
    assert stages == ["read", "decode", "queue", "device", "total"]


def test_predict_takes_a_raw_body(client: httpx.Client, jpeg: bytes) -> None:
    """An image as the whole body is answered like the same image in a form."""
    raw = client.post("/predict", content=jpeg, headers={"content-type": "image/jpeg"})
    form = client.post("/predict", files=files(jpeg))
    assert raw.json()["predictions"] == form.json()["predictions"]


def test_all_classes_can_be_asked_for(client: httpx.Client, jpeg: bytes) -> None:
    """With top_k as many as there are classes, the probabilities sum to one."""
    classes = client.get("/info").json()["labels"]
    predictions = client.post(f"/predict?top_k={classes}", files=files(jpeg)).json()["predictions"]
    assert sorted(prediction["class_id"] for prediction in predictions) == list(range(classes))
    assert sum(prediction["probability"] for prediction in predictions) == pytest.approx(1, abs=1e-5)


def test_batch_answers_each_part_in_order(client: httpx.Client, jpeg: bytes) -> None:
    """Good images get their own predictions and bad ones their own error, in the order sent."""
    other = encode(make_image(seed=5), "PNG")
    response = client.post("/predict/batch?top_k=2", files=files(jpeg, b"text", other, b""))
    assert response.status_code == 200
    results = response.json()["results"]
    assert [result["filename"] for result in results] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert [result.get("error", {}).get("status") for result in results] == [None, 415, None, 422]
    for image, result in ((jpeg, results[0]), (other, results[2])):
        single = client.post("/predict?top_k=2", files=files(image)).json()["predictions"]
        assert [p["class_id"] for p in result["predictions"]] == [p["class_id"] for p in single]
        for batched, alone in zip(result["predictions"], single, strict=True):
            assert batched["probability"] == pytest.approx(alone["probability"], abs=1e-3)


def test_info_says_what_is_served(client: httpx.Client) -> None:
    """/info names the model, the device, the versions, the machine and the limits."""
    info = client.get("/info").json()
    assert info["model"] == "bundled"
    assert info["labels"] == len(load_model("bundled").labels)
    assert info["hardware"]["cores"] >= 1
    assert info["limits"]["max_upload_bytes"] == 20_000_000
    assert {"torch", "torchvision"} <= set(info["versions"])


def test_bench_measures_each_batch_size(client: httpx.Client) -> None:
    """/bench gives a row for each batch size asked for, with consistent figures."""
    rows = client.get("/bench", params={"batch_sizes": "1,4,8", "iterations": 3}).json()["rows"]
    assert [row["batch_size"] for row in rows] == [1, 4, 8]
    for row in rows:
        assert row["iterations"] == 3
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["images_per_second"] == pytest.approx(row["batch_size"] / row["mean_ms"] * 1e3)


def test_bench_defaults_to_the_usual_sizes(client: httpx.Client) -> None:
    """Without batch sizes it measures 1, 4, 8, 16 and 32."""
    rows = client.get("/bench", params={"iterations": 1}).json()["rows"]
    assert [row["batch_size"] for row in rows] == [1, 4, 8, 16, 32]


def test_probes_say_yes(client: httpx.Client) -> None:
    """A warmed-up service is alive and ready."""
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_root_leads_to_the_api_page(client: httpx.Client) -> None:
    """/ redirects to the OpenAPI page, which loads nothing from another host."""
    response = client.get("/", follow_redirects=True)
    assert response.url.path == "/docs"
    assert "https://" not in response.text
    assert "swagger-ui" in response.text


def test_a_request_id_is_kept_or_made(client: httpx.Client) -> None:
    """A harmless X-Request-ID comes back; a harmful one is replaced."""
    assert client.get("/healthz", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = client.get("/healthz", headers={"x-request-id": 'a"b\tc' + "x" * 500}).headers["x-request-id"]
    assert len(made) == 32


# Batching, seen from outside


def test_concurrent_requests_share_batches(server: Running, jpeg: bytes) -> None:
    """64 requests, the first of which keeps the device busy: full batches, and all answer the same."""
    batches = server.metric("inference_batch_size_count")
    with ThreadPoolExecutor(64) as pool, server.runtime.held():
        first = pool.submit(server.client.post, "/predict", files=files(jpeg))
        assert server.runtime.begun.acquire(timeout=30)
        rest = [pool.submit(server.client.post, "/predict", files=files(jpeg)) for _ in range(63)]
        server.wait_for(lambda: server.metric("inference_queue_depth") == 63)
        server.runtime.release()
        answers = [future.result().json()["predictions"] for future in [first, *rest]]
    full = server.metric("inference_largest_batch")  # 32, or what the warm-up found worth taking
    assert server.metric("inference_batch_size_count") - batches == 1 + math.ceil(63 / full)
    assert {answer[0]["class_id"] for answer in answers} == {answers[0][0]["class_id"]}
    for answer in answers:
        for batched, alone in zip(answer, answers[0], strict=True):
            assert batched["probability"] == pytest.approx(alone["probability"], abs=1e-3)


def test_a_client_that_hangs_up_is_not_run(server: Running, jpeg: bytes) -> None:
    """An image whose client left while it waited never reaches the device; its neighbor does."""
    cancelled = server.metric("inference_images_total", outcome="cancelled")
    run = server.metric("inference_batch_size_sum")
    with ThreadPoolExecutor(2) as pool, server.runtime.held():
        first = pool.submit(server.client.post, "/predict", files=files(jpeg))
        assert server.runtime.begun.acquire(timeout=30)
        leaver = send_only(server, jpeg)
        second = pool.submit(server.client.post, "/predict", files=files(jpeg))
        server.wait_for(lambda: server.metric("inference_queue_depth") == 2)
        leaver.close()
        server.wait_for(lambda: server.metric("inference_images_total", outcome="cancelled") == cancelled + 1)
        server.runtime.release()
        assert first.result().status_code == second.result().status_code == 200
    assert server.metric("inference_batch_size_sum") - run == 2
    assert server.metric("inference_request_seconds_count", route="/predict", status="499") == 1


def test_a_second_bench_is_rejected(server: Running) -> None:
    """While one benchmark runs another gets 409, and the first is not disturbed."""
    with ThreadPoolExecutor(1) as pool, server.runtime.held():
        first = pool.submit(server.client.get, "/bench?batch_sizes=1&iterations=1")
        assert server.runtime.begun.acquire(timeout=30)
        problem(server.client.get("/bench"), 409, "conflict")
        server.runtime.release()
        assert first.result().status_code == 200


def test_an_error_of_the_model_is_a_500_and_the_service_goes_on(server: Running, jpeg: bytes) -> None:
    """A failing batch is that request's InferenceError, without internals; the next one is answered."""
    server.runtime.error = RuntimeError("secret detail")
    try:
        detail = problem(server.client.post("/predict", files=files(jpeg)), 500, "inference-failed")
    finally:
        server.runtime.error = None
    assert "secret" not in detail
    assert server.client.post("/predict", files=files(jpeg)).status_code == 200


def test_metrics_have_the_promised_names(server: Running, jpeg: bytes) -> None:
    """Every metric that dashboards rely on is there, with its labels, as counted by one request."""
    before = server.metric("inference_images_total", outcome="ok")
    server.client.post("/predict", files=files(jpeg))
    assert server.metric("inference_images_total", outcome="ok") == before + 1
    assert server.metric("inference_request_seconds_count", route="/predict", method="POST", status="200") > 0
    for stage in ("read", "decode", "queue", "device"):
        assert server.metric("inference_stage_seconds_count", stage=stage) > 0
    assert server.metric("inference_ready") == 1
    assert server.metric("inference_model_info", model="bundled", device="cpu") == 1
    text = server.client.get("/metrics").text
    for name in (
        "inference_queue_depth",
        "inference_in_flight",
        "inference_rejected_total",
        "inference_device_streams",
        "inference_device_memory_bytes",
        "process_resident_memory_bytes",
        "python_info",
    ):
        assert f"# TYPE {name.removesuffix('_total')}" in text


def test_a_trace_is_an_exemplar_of_its_time(server: Running, jpeg: bytes) -> None:
    """The trace id of a client's traceparent is in OpenMetrics beside the bucket of its request."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    server.client.post("/predict", files=files(jpeg), headers=headers)
    text = server.client.get(
        "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    ).text
    assert re.search(f'inference_request_seconds_bucket.*route="/predict".*# {{trace_id="{trace}"}}', text)
    assert trace not in server.client.get("/metrics").text


# What is rejected


def test_text_as_an_image(client: httpx.Client) -> None:
    """Text in the field `file` is 415, whatever its declared type."""
    response = client.post("/predict", files={"file": ("dog.jpg", b"just text", "image/jpeg")})
    problem(response, 415, "unsupported-media-type")


def test_a_truncated_jpeg(client: httpx.Client) -> None:
    """Half a JPEG is 422."""
    jpeg = encode(make_image(640, 480))
    problem(client.post("/predict", files=files(jpeg[: len(jpeg) // 2])), 422, "invalid-image")


def test_a_pixel_bomb(client: httpx.Client) -> None:
    """A 30,000 x 30,000 PNG of a few KB is 413."""
    assert "30000" in problem(
        client.post("/predict", files=files(bomb(30_000, 30_000))), 413, "payload-too-large"
    )


def test_an_empty_file(client: httpx.Client) -> None:
    """A part of no bytes is 422 and says so."""
    assert "empty" in problem(client.post("/predict", files=files(b"")), 422, "invalid-image")


def test_an_empty_image_body(client: httpx.Client) -> None:
    """An image/* body of no bytes is 422."""
    response = client.post("/predict", content=b"", headers={"content-type": "image/png"})
    assert "empty" in problem(response, 422, "invalid-image")


def test_no_body_at_all(client: httpx.Client) -> None:
    """A request without a body or a type is told what to send."""
    assert "'file'" in problem(client.post("/predict"), 415, "unsupported-media-type")


def test_a_wrong_field_name(client: httpx.Client, jpeg: bytes) -> None:
    """A form without `file` is 422 and says what it has instead."""
    detail = problem(client.post("/predict", files={"image": jpeg}), 422, "invalid-request")
    assert "'image'" in detail


@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
@pytest.mark.parametrize("top_k", ["0", "-1", "1000000", "five", ""])
def test_an_impossible_top_k(client: httpx.Client, jpeg: bytes, path: str, top_k: str) -> None:
    """top_k outside 1 to the number of classes is 422."""
    assert "top_k" in problem(client.post(f"{path}?top_k={top_k}", files=files(jpeg)), 422, "invalid-request")


def test_two_images_to_predict(client: httpx.Client, jpeg: bytes) -> None:
    """/predict with two images points to /predict/batch instead of dropping one."""
    detail = problem(client.post("/predict", files=files(jpeg, jpeg)), 422, "invalid-request")
    assert "/predict/batch" in detail


@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_two_hundred_parts(client: httpx.Client, jpeg: bytes, path: str) -> None:
    """More parts than allowed are 413."""
    assert "64" in problem(client.post(path, files=files(*[jpeg] * 200)), 413, "payload-too-large")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"no boundary here"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc'),
        ("multipart/form-data; boundary=x", b"--x\r\nbroken header\r\n\r\nabc\r\n--x--\r\n"),
        (f"multipart/form-data; boundary={'x' * 1000}", b"--x--\r\n"),
    ],
)
def test_a_malformed_form(client: httpx.Client, content_type: str, body: bytes) -> None:
    """Forms without a boundary, cut off or broken are 422."""
    response = client.post("/predict", content=body, headers={"content-type": content_type})
    problem(response, 422, "invalid-request")


@pytest.mark.parametrize("query", ["batch_sizes=0", "batch_sizes=a", "batch_sizes=33", "batch_sizes=1,,2"])
def test_impossible_batch_sizes(client: httpx.Client, query: str) -> None:
    """/bench takes sizes from 1 to the largest batch only."""
    problem(client.get(f"/bench?{query}"), 422, "invalid-request")


def test_the_work_of_a_bench_is_bounded(client: httpx.Client) -> None:
    """A benchmark of more images than the limit is rejected before it starts."""
    detail = problem(client.get("/bench?batch_sizes=32&iterations=1000"), 422, "invalid-request")
    assert "limit" in detail


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/predict", 405), ("GET", "/nothing", 404)])
def test_the_frameworks_errors_are_problems_too(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    """A wrong path or method has the same body shape as every other error."""
    response = client.request(method, path)
    assert response.headers["content-type"] == PROBLEM
    assert response.json()["status"] == response.status_code == status


# Uploads over the limit


@pytest.fixture(scope="module")
def strict_server() -> Iterator[Running]:
    """A server that takes a tenth of a megabyte, within half a second."""
    settings = Settings(model="bundled", max_upload_mb=0.1, read_timeout_s=0.5, max_queue=2)
    with serving(settings) as running:
        yield running


def test_a_declared_upload_over_the_limit(strict_server: Running) -> None:
    """A Content-Length over the limit is 413 before the body has arrived, and the connection closes."""
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 900000000\r\n\r\n"
    answer = oversized(strict_server, head, b"", 0)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer.lower()


def test_a_chunked_upload_over_the_limit(strict_server: Running) -> None:
    """A body without a length is cut off while it is read: the answer comes though the body never ends."""
    head = (
        "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    answer = oversized(strict_server, head, chunk, 5)
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_client_that_sends_everything_first_reads_its_rejection(strict_server: Running) -> None:
    """A client that only reads after sending all of a rejected upload finds 413, not a reset connection."""
    response = strict_server.client.post("/predict", files=files(b"x" * 3_000_000))
    problem(response, 413, "payload-too-large")


def test_a_client_that_never_finishes(strict_server: Running) -> None:
    """A body that does not arrive in time is 408, and the connection closes."""
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
    answer = oversized(strict_server, head, b"x", 3)
    assert answer.startswith(b"HTTP/1.1 408")


# Overload, stalls, shutdown


def test_a_full_queue_is_429_with_retry_after(strict_server: Running, jpeg: bytes) -> None:
    """When the queue is full the next request is rejected at once and told when to come back."""
    before = strict_server.metric("inference_rejected_total", reason="queue_full")
    with ThreadPoolExecutor(3) as pool, strict_server.runtime.held():
        accepted = [pool.submit(strict_server.client.post, "/predict", files=files(jpeg))]
        assert strict_server.runtime.begun.acquire(timeout=30)
        accepted += [pool.submit(strict_server.client.post, "/predict", files=files(jpeg)) for _ in range(2)]
        strict_server.wait_for(lambda: strict_server.metric("inference_queue_depth") == 2)
        rejected_response = strict_server.client.post("/predict", files=files(jpeg))
        problem(rejected_response, 429, "overloaded")
        assert int(rejected_response.headers["retry-after"]) >= 1
        assert strict_server.client.get("/healthz").status_code == 200
        strict_server.runtime.release()
        assert [future.result().status_code for future in accepted] == [200, 200, 200]
    assert strict_server.metric("inference_rejected_total", reason="queue_full") == before + 1


def test_a_deadline_is_504(jpeg: bytes) -> None:
    """An image the device does not answer in time is 504."""
    with serving(Settings(model="bundled", request_timeout_s=0.2)) as server:
        with server.runtime.held():
            problem(server.client.post("/predict", files=files(jpeg)), 504, "deadline-exceeded")
        assert server.metric("inference_images_total", outcome="expired") == 1


def test_two_instances_take_turns_and_outlive_each_other(jpeg: bytes) -> None:
    """Two instances run two images at the same time; where one fails for good, the other goes on."""
    with (
        serving(Settings(model="bundled", streams_per_device=2, max_batch=1)) as server,
        ExitStack() as stack,
    ):
        pool = stack.enter_context(ThreadPoolExecutor(2))
        for runtime in server.runtimes:
            stack.enter_context(runtime.held())
        answers = [pool.submit(server.client.post, "/predict", files=files(jpeg)) for _ in range(2)]
        for runtime in server.runtimes:
            assert runtime.begun.acquire(timeout=30)
        one, other = server.runtimes
        one.error = DeviceError("gone")
        one.release()
        other.release()
        assert sorted(answer.result().status_code for answer in answers) == [200, 500]
        for _ in range(3):
            assert server.client.post("/predict", files=files(jpeg)).status_code == 200
        assert server.client.get("/readyz").status_code == 200
        assert server.client.get("/info").json()["streams"] == 2


def test_a_stuck_batch_fails_liveness(jpeg: bytes) -> None:
    """/healthz fails while a batch is on the device for too long, and recovers with it."""
    with (
        serving(Settings(model="bundled", stall_timeout_s=0.1)) as server,
        ThreadPoolExecutor(1) as pool,
        server.runtime.held(),
    ):
        stuck = pool.submit(server.client.post, "/predict", files=files(jpeg))
        server.wait_for(lambda: server.client.get("/healthz").status_code == 503)
        server.runtime.release()
        assert stuck.result().status_code == 200
        assert server.client.get("/healthz").status_code == 200


def test_a_failed_device_ends_the_process(jpeg: bytes) -> None:
    """Once the device has failed for good the server ends by itself, as failed, so that it is replaced."""
    with serving(Settings(model="bundled")) as server:
        server.runtime.error = DeviceError("gone")
        assert server.client.post("/predict", files=files(jpeg)).status_code == 500
        server.thread.join(30)
        assert not server.thread.is_alive()
        assert isinstance(server.service.engine.fatal_error, DeviceError)


def test_a_device_that_fails_in_a_benchmark_ends_the_process_too() -> None:
    """A failed device is noticed wherever it fails."""
    with serving(Settings(model="bundled")) as server:
        server.runtime.error = DeviceError("gone")
        assert server.client.get("/bench?batch_sizes=1&iterations=1").status_code == 500
        server.thread.join(30)
        assert not server.thread.is_alive()


def test_a_device_stuck_in_a_benchmark_fails_liveness() -> None:
    """The heartbeat is the device's, whoever keeps it busy."""
    with (
        serving(Settings(model="bundled", stall_timeout_s=0.1)) as server,
        ThreadPoolExecutor(1) as pool,
        server.runtime.held(),
    ):
        stuck = pool.submit(server.client.get, "/bench?batch_sizes=1&iterations=1")
        server.wait_for(lambda: server.client.get("/healthz").status_code == 503)
        server.runtime.release()
        assert stuck.result().status_code == 200


def test_a_batch_that_the_service_rejects_says_so_in_its_status(jpeg: bytes) -> None:
    """Where the service could answer none of a batch's images, the status is the error's."""
    with serving(Settings(model="bundled", request_timeout_s=0.2)) as server, server.runtime.held():
        response = server.client.post("/predict/batch", files=files(jpeg, jpeg))
        problem(response, 504, "deadline-exceeded")


def test_a_batch_larger_than_the_queue_is_answered(jpeg: bytes) -> None:
    """Images of one request wait for each other, not in the queue: at most a device batch at a time."""
    settings = Settings(model="bundled", max_queue=4, max_batch=4)
    with serving(settings) as server:
        results = server.client.post("/predict/batch", files=files(*[jpeg] * 30)).json()["results"]
        assert [result.get("error") for result in results] == [None] * 30


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=abc", "x/y;;=", "\u00e9"])
def test_metrics_for_any_accept_header(client: httpx.Client, accept: str) -> None:
    """A client that cannot say what it accepts gets the plain text format."""
    assert client.get("/metrics", headers={b"accept": accept.encode("latin-1")}).status_code == 200


def test_many_clients_at_once(server: Running) -> None:
    """200 requests over 50 connections are all answered, each with its own image's classes."""
    images = [encode(make_image(seed=seed)) for seed in range(10)]

    async def load() -> list[list[int]]:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=50)) as client:
            requests = (client.post(f"{server.url}/predict", files=files(images[n % 10])) for n in range(200))
            answers = await asyncio.gather(*requests)
        return [[p["class_id"] for p in json.loads(answer.text)["predictions"]] for answer in answers]

    classes = asyncio.run(load())
    for n, ranking in enumerate(classes):
        assert ranking == classes[n % 10]
