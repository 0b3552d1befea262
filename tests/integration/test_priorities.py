"""Priorities and timeouts of requests: which lane a request takes, who runs first, and who is rejected."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from resnet_service.settings import Settings
from tests.support.http import assert_problem, files
from tests.support.server import Running, serving
from tests.support.v2 import INFER_PATH, json_input

BULK_KEY, ANY_KEY = "at-night-0123456789", "at-once-0123456789"


@pytest.fixture(scope="module")
def single_server() -> Iterator[Running]:
    """Yield a server that runs one image at a time, and has a key that is limited to bulk."""
    keys = SecretStr(f"{ANY_KEY} predict metrics admin,{BULK_KEY} predict priority=bulk")
    with serving(Settings(model="cifar10", max_batch=1, api_keys=keys)) as running:
        running.client.headers["X-API-Key"] = ANY_KEY
        yield running


def waiting(server: Running, priority: str) -> float:
    return server.metric("inference_queue_depth", priority=priority)


def wait_until_waiting(server: Running, priority: str, count: int) -> None:
    server.wait_for(lambda: waiting(server, priority) == count)


@contextmanager
def busy(server: Running, jpeg: bytes, pool: ThreadPoolExecutor) -> Iterator[None]:
    """Hold an image on the device until the end of the block."""
    with server.runtime.held():
        first = pool.submit(server.client.post, "/predict", files=files(jpeg))
        assert server.runtime.begun.acquire(timeout=30)
        yield
    assert first.result().status_code == 200


def v2(query: str = "", **parameters: Any) -> tuple[str, dict[str, Any]]:
    return INFER_PATH + query, {"json": {"inputs": [json_input()], "parameters": parameters}}


def form(path: str, **fields: str) -> tuple[str, dict[str, Any]]:
    return path, {"data": fields, "files": ...}


REQUESTS = {
    "predict": (form("/predict"), "interactive"),
    "predict, priority in the query": (form("/predict?priority=bulk"), "bulk"),
    "predict, priority in the form": (form("/predict", priority="bulk"), "bulk"),
    "predict, the same in both": (form("/predict?priority=bulk", priority="bulk"), "bulk"),
    "batch": (form("/predict/batch"), "bulk"),
    "batch, priority in the query": (form("/predict/batch?priority=interactive"), "interactive"),
    "batch, priority in the form": (form("/predict/batch", priority="interactive"), "interactive"),
    "infer": (v2(), "interactive"),
    "infer, priority 1": (v2(priority=1), "interactive"),
    "infer, priority 2": (v2(priority=2), "bulk"),
    "infer, low priority": (v2(priority=100), "bulk"),
    "infer, priority in the query": (v2("?priority=bulk"), "bulk"),
}


def send(server: Running, request: tuple[str, dict[str, Any]], jpeg: bytes, **headers: str) -> httpx.Response:
    path, content = request
    if "files" in content:
        content = content | {"files": files(jpeg)}
    return server.client.post(path, headers=headers, **content)


@pytest.mark.parametrize("name", REQUESTS)
def test_request_waits_in_the_lane_of_its_priority(single_server: Running, jpeg: bytes, name: str) -> None:
    """Query, form and JSON can have the priority, and /predict/batch is bulk by default."""
    request, lane = REQUESTS[name]
    server = single_server
    with ThreadPoolExecutor(2) as pool:
        with busy(server, jpeg, pool):
            response = pool.submit(send, server, request, jpeg)
            server.wait_for(lambda: waiting(server, lane) > 0)
            assert {waiting(server, other) for other in {"interactive", "bulk"} - {lane}} == {0}
        assert response.result().status_code == 200


def test_interactive_requests_run_before_bulk_ones_that_came_earlier(
    single_server: Running, jpeg: bytes
) -> None:
    """Of five images that wait, the two interactive ones run first; all have waited for the same image."""
    server = single_server
    waited_ms: dict[str, float] = {}

    def post(name: str, priority: str) -> None:
        response = server.client.post("/predict", params={"priority": priority}, files=files(jpeg))
        waited_ms[name] = response.json()["timing_ms"]["queue"]

    with ThreadPoolExecutor(6) as pool:
        pending = []
        with busy(server, jpeg, pool):
            for priority, count in (("bulk", 3), ("interactive", 2)):
                for number in range(count):
                    pending.append(pool.submit(post, f"{priority} {number}", priority))
                    wait_until_waiting(server, priority, number + 1)
        for future in pending:
            future.result()
    # The bulk images were queued first: if they also ran first, they would have waited for a shorter time.
    assert max(waited_ms["interactive 0"], waited_ms["interactive 1"]) < waited_ms["bulk 0"]


@pytest.mark.parametrize(
    ("request_", "detail"),
    [
        (form("/predict?priority=high"), "priority: Input should be 'interactive' or 'bulk'"),
        (form("/predict", priority="high"), "priority: Input should be 'interactive' or 'bulk'"),
        (
            form("/predict?priority=bulk", priority="interactive"),
            "priority is bulk in the query and interactive",
        ),
        (form("/predict?prio=bulk"), "did you mean 'priority'?"),
        (form("/predict", prioritty="bulk"), "did you mean 'priority'?"),
        (form("/predict?timeout_ms=0"), "timeout_ms: Input should be greater than or equal to 1"),
        (form("/predict?timeout_ms=1.5"), "timeout_ms: Input should be a valid integer"),
        (form("/predict?timeout=5"), "did you mean 'timeout_ms'?"),
        (
            form("/predict?timeout_ms=500", timeout_ms="900"),
            "timeout_ms is 500 in the query and 900 in the body",
        ),
    ],
)
def test_invalid_priority_or_timeout_is_422(
    single_server: Running, jpeg: bytes, request_: tuple[str, dict[str, Any]], detail: str
) -> None:
    """The message names the parameter and what is expected."""
    response = send(single_server, request_, jpeg)
    assert detail in assert_problem(response, 422, "invalid-request")


@pytest.mark.parametrize("priority", [-1, 1.5, "bulk", 2**64, None])
def test_invalid_priority_of_the_protocol_is_422(single_server: Running, jpeg: bytes, priority: Any) -> None:
    """As in Triton, the priority is an unsigned integer."""
    response = send(single_server, v2(priority=priority), jpeg)
    assert response.status_code == 422
    assert "parameters.priority" in response.json()["error"]


@pytest.mark.parametrize(
    "request_", [form("/predict?timeout_ms=50"), form("/predict", timeout_ms="50"), v2("?timeout_ms=50")]
)
def test_request_ends_after_its_own_timeout(
    single_server: Running, jpeg: bytes, request_: tuple[str, dict[str, Any]]
) -> None:
    """A request with a timeout of 50 ms gets 504 while the device is busy; the service allows 30 s."""
    with ThreadPoolExecutor(1) as pool, busy(single_server, jpeg, pool):
        response = send(single_server, request_, jpeg)
    assert response.status_code in (429, 504)  # 429: it was clear from the start
    assert "deadline" in response.text


def test_timeout_over_that_of_the_service_is_bounded(jpeg: bytes) -> None:
    """A client cannot extend the timeout of the service."""
    with serving(Settings(model="cifar10", request_timeout_s=0.2)) as server, server.runtime.held():
        response = server.client.post("/predict?timeout_ms=86400000", files=files(jpeg))
        assert_problem(response, 504, "deadline-exceeded")


def test_key_that_is_limited_to_bulk_gets_that_priority(single_server: Running, jpeg: bytes) -> None:
    """Its requests are bulk by default, and asking for another priority is 403."""
    server = single_server
    with ThreadPoolExecutor(2) as pool:
        with busy(server, jpeg, pool):
            response = pool.submit(send, server, form("/predict"), jpeg, **{"X-API-Key": BULK_KEY})
            wait_until_waiting(server, "bulk", 1)
        assert response.result().status_code == 200
    for request_ in (
        form("/predict?priority=interactive"),
        form("/predict", priority="interactive"),
        v2(priority=1),
    ):
        response_ = send(server, request_, jpeg, **{"X-API-Key": BULK_KEY})
        assert response_.status_code == 403
        assert "priority=bulk" in response_.text


def test_bulk_requests_do_not_fill_the_queue_for_interactive_ones(jpeg: bytes) -> None:
    """With a queue of two images full of bulk ones, an interactive image is accepted, a bulk one is 429."""
    with (
        serving(Settings(model="cifar10", max_batch=1, max_queue=2)) as server,
        ThreadPoolExecutor(4) as pool,
    ):
        with busy(server, jpeg, pool):
            post = server.client.post
            bulk = [pool.submit(post, "/predict?priority=bulk", files=files(jpeg)) for _ in range(2)]
            wait_until_waiting(server, "bulk", 2)
            assert_problem(post("/predict?priority=bulk", files=files(jpeg)), 429, "overloaded")
            interactive = pool.submit(post, "/predict", files=files(jpeg))
            wait_until_waiting(server, "interactive", 1)
        assert [future.result().status_code for future in (*bulk, interactive)] == [200] * 3
