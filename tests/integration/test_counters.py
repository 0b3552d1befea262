"""The counters of requests and images: they match what the clients saw, however a request ends."""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

import httpx
import pytest

from resnet_service.settings import Settings
from tests.support.http import connected, files, post
from tests.support.images import encode, make_image
from tests.support.server import Running, serving
from tests.support.v2 import base64_strings, json_input

KEY, OTHER_SCOPE, SLOW = "images-0123456789", "scraper-0123456789", "slowly-0123456789"
NAMES: Final = {"/predict": "/predict", "/predict/batch": "/predict/batch", "/v2": "/v2/models/cifar10/infer"}
_SAMPLE: Final = re.compile(r'inference_(\w+)\{.*?(?:outcome|reason|status)="(\w+)".*\} (\S+)')
_COUNTED: Final = ("images_total", "rejected_total", "request_seconds_count")

routes = pytest.mark.parametrize("route", NAMES)


def request(route: str, *images: bytes, **options: Any) -> dict[str, Any]:
    """Return the arguments of httpx for a request with these images."""
    body: dict[str, Any] = {"files": files(*images)}
    if route == "/v2":
        body = {"json": {"inputs": [json_input(shape=[len(images)], data=base64_strings(*images))]}}
    return {"url": NAMES[route], **body, **options}


class Seen:
    """What the clients saw: requests by status, images by outcome, and rejected images by reason."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def add(self, status: int, *outcomes: str, reason: str | None = None) -> None:
        self.counts["request_seconds_count", str(status)] += 1
        for outcome in outcomes:
            self.counts["images_total", outcome] += 1
            if outcome == "rejected":
                assert reason is not None
                self.counts["rejected_total", reason] += 1


def counts(server: Running) -> Counter[tuple[str, str]]:
    """Return the same of the service: the samples of /metrics that are not 0."""
    found: Counter[tuple[str, str]] = Counter()
    for line in server.client.get("/metrics", headers={"X-API-Key": KEY}).text.splitlines():
        match = _SAMPLE.fullmatch(line)
        if match and match[1] in _COUNTED and not ("route=" in line and 'method="POST"' not in line):
            found[match[1], match[2]] += int(float(match[3]))
    return +found


@contextmanager
def compared(server: Running) -> Iterator[Seen]:
    """Check that the counters grow in the block by what the clients saw."""
    before, seen = counts(server), Seen()
    yield seen
    server.wait_for(lambda: counts(server) - before == seen.counts)


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    """Yield a server with small limits."""
    settings = Settings(
        model="cifar10", max_queue=2, max_batch=2, max_upload_mb=0.4, upload_memory_mb=0.3, read_timeout_s=0.5
    )
    with serving(settings) as running:
        yield running


BMP: Final = encode(make_image(270, 270), "BMP")
"""219 kB."""
_MALFORMED: Final = {"content": b"{}", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}
_TOO_LARGE: Final = {"content": bytes(350_000), "headers": {"Content-Type": "image/jpeg"}}


@routes
@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"params": {"top_k": 0}}, 422),
        ({"params": {"top_k": 11}}, 422),
        ({"headers": {"Content-Encoding": "gzip"}}, 415),
        ({"files": None, "json": None, **_MALFORMED}, 422),
        ({"files": None, "json": None, **_TOO_LARGE}, 413),
    ],
    ids=["top_k=0", "top_k=11", "compressed", "malformed", "larger than the upload memory"],
)
def test_invalid_request_counts_one_invalid_image(
    small: Running, jpeg: bytes, route: str, changes: dict[str, Any], status: int
) -> None:
    """The client is not told to retry."""
    arguments = {**request(route, jpeg), **changes}
    if route == "/v2" and "params" in changes:
        arguments["json"]["parameters"] = arguments.pop("params")
    with compared(small) as seen:
        response = small.client.post(**arguments)
        assert response.status_code == status
        assert "retry-after" not in response.headers
        seen.add(status, "invalid")


@routes
def test_classified_images_are_counted_one_by_one(small: Running, jpeg: bytes, route: str) -> None:
    """Each image of a batch counts."""
    count = 1 if route == "/predict" else 5
    with compared(small) as seen:
        assert small.client.post(**request(route, *[jpeg] * count)).status_code == 200
        seen.add(200, *["ok"] * count)


def test_unreadable_images_are_invalid(small: Running, jpeg: bytes) -> None:
    """In a batch they do not affect the others; under /v2 the first one ends the request."""
    with compared(small) as seen:
        assert small.client.post(**request("/predict", b"text")).status_code == 415
        seen.add(415, "invalid")
        results = small.client.post(**request("/predict/batch", jpeg, b"text", jpeg)).json()["results"]
        assert ["error" in result for result in results] == [False, True, False]
        seen.add(200, "ok", "invalid", "ok")
        assert small.client.post(**request("/v2", b"text")).status_code == 415
        seen.add(415, "invalid")


@routes
def test_full_queue_is_counted(small: Running, jpeg: bytes, route: str) -> None:
    """The reason is queue_full."""
    with compared(small) as seen, ThreadPoolExecutor(3) as pool, small.runtime.held():
        accepted = [pool.submit(small.client.post, **request("/predict", jpeg))]
        assert small.runtime.begun.acquire(timeout=30)
        accepted += [pool.submit(small.client.post, **request("/predict", jpeg)) for _ in range(2)]
        small.wait_for(lambda: small.metric("inference_queue_depth") == 2)
        assert small.client.post(**request(route, jpeg)).status_code == 429
        seen.add(429, "rejected", reason="queue_full")
        small.runtime.release()
        for response in accepted:
            seen.add(response.result().status_code, "ok")


@routes
def test_full_upload_memory_is_counted(small: Running, route: str) -> None:
    """The reason is memory, and the client may retry."""
    with compared(small) as seen, ThreadPoolExecutor(1) as pool, small.runtime.held():
        accepted = pool.submit(small.client.post, **request("/predict", BMP))
        assert small.runtime.begun.acquire(timeout=30)
        response = small.client.post(**request(route, BMP))
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        seen.add(429, "rejected", reason="memory")
        small.runtime.release()
        seen.add(accepted.result().status_code, "ok")


@routes
def test_slow_upload_is_counted(small: Running, jpeg: bytes, route: str) -> None:
    """A body that does not arrive in time is invalid: 408."""
    with compared(small) as seen, connected(small.url) as client:
        client.send(post(jpeg, path=NAMES[route])[: -len(jpeg) // 2])
        assert client.status() == 408
        seen.add(408, "invalid")


@routes
def test_disconnect_during_an_upload_is_counted(small: Running, jpeg: bytes, route: str) -> None:
    """The image is cancelled."""
    with compared(small) as seen:
        with connected(small.url) as client:
            client.send(post(jpeg, path=NAMES[route])[: -len(jpeg) // 2])
            small.wait_for(lambda: small.metric("inference_upload_bytes") > 0)
        seen.add(499, "cancelled")


@routes
def test_disconnect_cancels_all_images_of_a_request(small: Running, jpeg: bytes, route: str) -> None:
    """Those that run, those that wait, and those that were not queued yet."""
    count = 1 if route == "/predict" else 7
    with compared(small) as seen, small.runtime.held():
        content = small.client.build_request("POST", **request(route, *[jpeg] * count))
        with connected(small.url) as client:
            headers = "".join(f"{name}: {value}\r\n" for name, value in content.headers.items())
            client.send(f"POST {NAMES[route]} HTTP/1.1\r\n{headers}\r\n".encode() + content.read())
            assert small.runtime.begun.acquire(timeout=30)
            client.reset()
        seen.add(499, *["cancelled"] * count)
        small.wait_for(lambda: small.metric("inference_in_flight") == 0)


@routes
def test_failed_device_batch_is_counted(small: Running, jpeg: bytes, route: str) -> None:
    """The images failed."""
    small.runtime.error = RuntimeError("once")
    try:
        with compared(small) as seen:
            assert small.client.post(**request(route, jpeg)).status_code == 500
            seen.add(500, "failed")
    finally:
        small.runtime.error = None


def test_unknown_model_is_counted(small: Running, jpeg: bytes) -> None:
    """The request is invalid."""
    with compared(small) as seen:
        arguments = {**request("/v2", jpeg), "url": "/v2/models/other/infer"}
        assert small.client.post(**arguments).status_code == 404
        seen.add(404, "invalid")


@routes
def test_deadline_is_counted(jpeg: bytes, route: str) -> None:
    """A request that misses its deadline expires; one that would miss it is rejected for the deadline."""
    with serving(Settings(model="cifar10", request_timeout_s=0.3)) as server, compared(server) as seen:
        status = batches = 0
        with ThreadPoolExecutor(1) as pool:
            while status != 429:  # until the estimate has followed the slow device
                with server.runtime.held():
                    running = pool.submit(server.client.post, **request(route, jpeg))
                    assert server.runtime.begun.acquire(timeout=30)
                    status = server.client.post(**request(route, jpeg)).status_code
                    for each in (status, running.result().status_code):
                        seen.add(each, "rejected" if each == 429 else "expired", reason="deadline")
                batches += 1
                server.wait_for(lambda: server.metric("inference_batch_seconds_count") == batches)  # noqa: B023


@pytest.fixture(scope="module")
def protected() -> Iterator[Running]:
    """Yield a server with API keys."""
    keys = f"{KEY}, {OTHER_SCOPE} metrics, {SLOW} predict 0.01/s"
    with serving(Settings(model="cifar10", api_keys=keys)) as running:
        yield running


@routes
def test_api_key_that_does_not_permit_a_request_is_counted(
    protected: Running, jpeg: bytes, route: str
) -> None:
    """The request is invalid, or rejected with reason rate_limit."""

    def status(key: str) -> int:
        return protected.client.post(**request(route, jpeg, headers={"X-API-Key": key})).status_code

    with compared(protected) as seen:
        assert status("unknown") == 401
        seen.add(401, "invalid")
        assert status(OTHER_SCOPE) == 403
        seen.add(403, "invalid")
        if status(SLOW) == 200:  # the first one of all routes
            seen.add(200, "ok")
            assert status(SLOW) == 429
        seen.add(429, "rejected", reason="rate_limit")


@routes
def test_service_that_shuts_down_is_counted(jpeg: bytes, route: str) -> None:
    """The reason is not_ready."""
    with serving(Settings(model="cifar10")) as server, compared(server) as seen:
        loop = server.engines.loop.result()
        asyncio.run_coroutine_threadsafe(server.engines.close(0), loop).result()
        response: httpx.Response = server.client.post(**request(route, jpeg))
        assert response.status_code == 503
        seen.add(503, "rejected", reason="not_ready")
