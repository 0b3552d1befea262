"""Overload, deadlines, stuck batches and failed devices, on real servers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from resnet_service.errors import DeviceError
from resnet_service.settings import Settings
from tests.support.http import assert_problem, files, send_only
from tests.support.server import Running, serving


@pytest.fixture(scope="module")
def small_server() -> Iterator[Running]:
    """Yield a server with a queue and batches of four images."""
    with serving(Settings(model="cifar10", max_queue=4, max_batch=4)) as running:
        yield running


def test_full_queue_rejects_with_429_and_retry_after(small_server: Running, jpeg: bytes) -> None:
    """If the queue is full, the next request is rejected immediately, and the accepted ones succeed."""

    def rejections() -> float:
        return small_server.metric("inference_rejected_total", reason="queue_full")

    client, before = small_server.client, rejections()
    with ThreadPoolExecutor(5) as pool, small_server.runtime.held():
        accepted = [pool.submit(client.post, "/predict", files=files(jpeg))]
        assert small_server.runtime.begun.acquire(timeout=30)
        accepted += [pool.submit(client.post, "/predict", files=files(jpeg)) for _ in range(4)]
        small_server.wait_for(lambda: small_server.metric("inference_queue_depth") == 4)
        response = client.post("/predict", files=files(jpeg))
        assert_problem(response, 429, "overloaded")
        assert int(response.headers["retry-after"]) >= 1
        assert client.get("/healthz").status_code == 200
        small_server.runtime.release()
        assert [future.result().status_code for future in accepted] == [200] * 5
    assert rejections() == before + 1


@pytest.fixture(scope="module")
def five_requests_server() -> Iterator[Running]:
    """Yield a server that reads, decodes and runs at most five requests at the same time."""
    with serving(Settings(model="cifar10", max_concurrency=5)) as running:
        yield running


def test_requests_over_the_concurrency_limit_wait_and_succeed(
    five_requests_server: Running, jpeg: bytes
) -> None:
    """Forty requests at a time are not rejected; bodies of those that wait are not read."""
    server, large = five_requests_server, jpeg + bytes(1_000_000)
    with ThreadPoolExecutor(40) as pool, server.runtime.held():
        accepted = [pool.submit(server.client.post, "/predict", files=files(large)) for _ in range(40)]
        server.wait_for(lambda: server.metric("inference_requests_waiting") == 35)
        assert server.metric("inference_upload_bytes") < 6 * len(large)
        server.runtime.release()
        assert [future.result().status_code for future in accepted] == [200] * 40
    assert server.metric("inference_requests_waiting") == 0


def test_slow_uploads_do_not_reach_the_concurrency_limit(five_requests_server: Running, jpeg: bytes) -> None:
    """More clients than the limit send half a body; another client's request succeeds, and then theirs."""
    server = five_requests_server
    with ExitStack() as stack:
        slow = [stack.enter_context(send_only(server, jpeg, length=100)) for _ in range(10)]
        assert server.client.post("/predict", files=files(jpeg)).status_code == 200
        for connection in slow:
            connection.sendall(jpeg[100:])
        for connection in slow:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_request_with_many_images_has_one_batch_in_the_queue(small_server: Running, jpeg: bytes) -> None:
    """Of 30 images, one batch is queued or runs and one more is decoded; others do not wait for the rest."""
    server = small_server
    largest = int(server.metric("inference_largest_batch"))
    with ThreadPoolExecutor(2) as pool, server.runtime.held():
        batch = pool.submit(server.client.post, "/predict/batch", files=files(*[jpeg] * 30))
        assert server.runtime.begun.acquire(timeout=30)
        server.wait_for(lambda: server.metric("inference_in_flight") == 2 * largest)
        # The first batch has the images that were decoded first, at least one.
        assert server.metric("inference_queue_depth") < largest
        single = pool.submit(server.client.post, "/predict", files=files(jpeg))
        server.wait_for(lambda: server.metric("inference_in_flight") == 2 * largest + 1)
        assert server.metric("inference_queue_depth") <= largest
        server.runtime.release()
        assert single.result().status_code == 200
        results = batch.result().json()["results"]
    assert [result.get("error") for result in results] == [None] * 30


@pytest.mark.parametrize("count", [8, 30])
def test_images_of_an_admitted_request_are_not_rejected(
    small_server: Running, jpeg: bytes, count: int
) -> None:
    """If the queue fills up after a request with several images was admitted, all of them are classified."""
    server = small_server
    started = min(count, 2 * int(server.metric("inference_largest_batch")))
    with ThreadPoolExecutor(6) as pool, server.runtime.held():
        singles = [pool.submit(server.client.post, "/predict", files=files(jpeg))]
        assert server.runtime.begun.acquire(timeout=30)
        singles += [pool.submit(server.client.post, "/predict", files=files(jpeg)) for _ in range(3)]
        server.wait_for(lambda: server.metric("inference_queue_depth") == 3)
        path = "/predict/batch?priority=interactive"
        batch = pool.submit(server.client.post, path, files=files(*[jpeg] * count))
        server.wait_for(lambda: server.metric("inference_in_flight") == 4 + started)
        assert server.client.post("/predict", files=files(jpeg)).status_code == 429
        server.runtime.release()
        assert [single.result().status_code for single in singles] == [200] * 4
        results = batch.result().json()["results"]
    assert [result.get("error") for result in results] == [None] * count


@pytest.fixture(scope="module")
def short_deadline_server() -> Iterator[Running]:
    """Yield a server that fails requests after 0.2 s."""
    with serving(Settings(model="cifar10", request_timeout_s=0.2)) as running:
        yield running


def test_image_that_misses_its_deadline_is_504(short_deadline_server: Running, jpeg: bytes) -> None:
    """An image that the device does not complete before the deadline fails and is counted as expired."""
    server = short_deadline_server
    before = server.metric("inference_images_total", outcome="expired")
    with server.runtime.held():
        response = server.client.post("/predict", files=files(jpeg))
    assert_problem(response, 504, "deadline-exceeded")
    assert server.metric("inference_images_total", outcome="expired") == before + 1


def test_batch_whose_images_all_miss_the_deadline_is_504(short_deadline_server: Running, jpeg: bytes) -> None:
    """If the service fails for all images of a batch, the response has the status of that error."""
    with short_deadline_server.runtime.held():
        response = short_deadline_server.client.post("/predict/batch", files=files(jpeg, jpeg))
    assert_problem(response, 504, "deadline-exceeded")


@pytest.fixture(scope="module")
def stall_server() -> Iterator[Running]:
    """Yield a server on which a batch counts as stalled after 1.5 s, and as hung after twice as long.

    A hung process ends itself: the time between has to be enough for a probe on a busy machine.
    """
    with serving(Settings(model="cifar10", stall_timeout_s=1.5)) as running:
        yield running


@pytest.mark.parametrize("kind", ["image", "benchmark"])
def test_stuck_batch_fails_liveness_until_it_ends(stall_server: Running, jpeg: bytes, kind: str) -> None:
    """/healthz returns 503 while a batch of any kind exceeds the stall timeout."""
    client = stall_server.client
    with ThreadPoolExecutor(1) as pool, stall_server.runtime.held():
        if kind == "image":
            stuck = pool.submit(client.post, "/predict", files=files(jpeg))
        else:
            stuck = pool.submit(client.get, "/bench?batch_sizes=1&iterations=1")
        stall_server.wait_for(lambda: client.get("/healthz").status_code == 503)
        stall_server.runtime.release()
        assert stuck.result().status_code == 200
    assert client.get("/healthz").status_code == 200


def test_streams_run_concurrently_and_survive_the_failure_of_one(jpeg: bytes) -> None:
    """Two streams run two batches at the same time; if one fails for good, the other serves all requests."""
    settings = Settings(model="cifar10", streams_per_device=2, max_batch=1)
    with serving(settings) as server, ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(2))
        for runtime in server.runtimes:
            stack.enter_context(runtime.held())
        responses = [pool.submit(server.client.post, "/predict", files=files(jpeg)) for _ in range(2)]
        for runtime in server.runtimes:
            assert runtime.begun.acquire(timeout=30)
        failing, other = server.runtimes
        failing.error = DeviceError("gone")
        failing.release()
        other.release()
        assert sorted(response.result().status_code for response in responses) == [200, 500]
        for _ in range(3):
            assert server.client.post("/predict", files=files(jpeg)).status_code == 200
        assert server.client.get("/readyz").status_code == 200
        assert server.client.get("/info").json()["streams"] == 2


@pytest.mark.parametrize("kind", ["image", "benchmark"])
def test_failed_device_stops_the_server(jpeg: bytes, kind: str) -> None:
    """If the device fails for good, in a batch of any kind, the server stops so that it is replaced."""
    with serving(Settings(model="cifar10")) as server:
        server.runtime.error = DeviceError("gone")
        if kind == "image":
            response = server.client.post("/predict", files=files(jpeg))
        else:
            response = server.client.get("/bench?batch_sizes=1&iterations=1")
        assert response.status_code == 500
        server.thread.join(30)
        assert not server.thread.is_alive()
        assert isinstance(server.engines.current.fatal_error, DeviceError)
