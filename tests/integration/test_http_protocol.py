"""HTTP connections over real sockets. The limits are tested in memory in tests/unit/test_http_*.py."""

import re
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise

import httpx
import pytest

from resnet_service.settings import Settings
from tests.support.http import connected, post, reset, send_only
from tests.support.server import Running, serving

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def strict_server() -> Iterator[Running]:
    """Yield a server with short timeouts and a short queue."""
    settings = Settings(model="cifar10", header_timeout_s=0.3, read_timeout_s=0.3, max_queue=2, max_batch=1)
    with serving(settings) as running:
        yield running


def one_more_rejected(server: Running, reason: str) -> Callable[[], bool]:
    """Return a function that tells whether one connection was rejected for this reason since the call."""
    name = "inference_connections_rejected_total"
    before = server.metric(name, reason=reason)
    return lambda: server.metric(name, reason=reason) == before + 1


# Requests that are rejected


def test_headers_that_never_end_get_408(strict_server: Running) -> None:
    """A client that sends a part of the request headers gets 408, and its connection is closed."""
    rejected = one_more_rejected(strict_server, "header_timeout")
    with connected(strict_server.url) as client:
        client.send(b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        status, headers, problem = client.answer()
        assert status == problem["status"] == 408
        assert headers["content-type"] == "application/problem+json"
        assert "headers" in problem["detail"]
        assert client.is_closed()
    assert rejected()


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"GET / HTTP/1.1\r\nX-Endless: " + b"x" * 1_000_000, 431, "header_too_large"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "malformed"),  # TLS
        (
            b"POST /predict HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "malformed",
        ),
    ],
    ids=["endless headers", "TLS", "both lengths"],
)
def test_client_can_read_why_connection_was_rejected(
    server: Running, data: bytes, status: int, reason: str
) -> None:
    """The response arrives although the client is still sending, and the connection is closed after it."""
    rejected = one_more_rejected(server, reason)
    with connected(server.url) as client:
        client.send(data)
        received, _, problem = client.answer()
        assert received == problem["status"] == status
        assert client.is_closed()
    assert rejected()


def test_malformed_data_after_request_keeps_its_response(server: Running, jpeg: bytes) -> None:
    """A request on the device gets its response, although malformed data follows it."""
    with connected(server.url) as client, server.runtime.held():
        client.send(post(jpeg) + b"rubbish\r\n\r\n")
        assert server.runtime.begun.acquire(timeout=30)
        server.runtime.release()
        status, headers, _ = client.answer()
        assert status == 200
        assert headers["connection"] == "close"
        assert client.is_closed()


def test_full_queue_rejects_with_429_before_body_is_sent(strict_server: Running, jpeg: bytes) -> None:
    """429 is sent after the request headers, also instead of 100 Continue; the connection stays open."""
    server = strict_server

    def predict() -> int:
        headers = {"Content-Type": "image/jpeg"}
        return server.client.post("/predict", content=jpeg, headers=headers).status_code

    with ThreadPoolExecutor(3) as pool, server.runtime.held():
        accepted = [pool.submit(predict)]
        assert server.runtime.begun.acquire(timeout=30)
        accepted += [pool.submit(predict) for _ in range(2)]
        server.wait_for(lambda: server.metric("inference_queue_depth") == 2)
        with connected(server.url) as client:  # not earlier: it has to send headers within a short time
            request = post(jpeg)
            client.send(request[: -len(jpeg)])
            status, headers, _ = client.answer()
            assert status == 429
            assert int(headers["retry-after"]) >= 1
            client.send(jpeg)  # discarded
            client.send(post(jpeg, "Expect: 100-continue")[: -len(jpeg)])
            assert client.answer()[0] == 429
        server.runtime.release()
        assert [future.result() for future in accepted] == [200] * 3


# Requests that are served


def test_pipelined_requests_to_routes_get_responses_in_order(server: Running, jpeg: bytes) -> None:
    """Requests that are sent before the responses to earlier ones get theirs in order."""
    with connected(server.url) as client:
        client.send((post(jpeg) + GET + post(b"rubbish") + GET) * 10)
        statuses = [client.answer()[0] for _ in range(40)]
    assert statuses == [200, 200, 415, 200] * 10


def test_connection_stays_open_after_errors(strict_server: Running, jpeg: bytes) -> None:
    """After an unsupported image, an unknown path and half an image, the connection serves a request."""
    with connected(strict_server.url) as client:
        client.send(post(b"rubbish"))
        assert client.answer()[0] == 415
        client.send(post(jpeg, path="/unknown"))
        assert client.answer()[0] == 404
        client.send(post(jpeg[:200]))
        assert client.answer()[0] == 422
        client.send(post(jpeg))
        assert client.answer()[0] == 200


def test_chunked_image_is_classified(server: Running, jpeg: bytes) -> None:
    """An image without a Content-Length, in chunks of any size, is classified."""
    cuts = [0, 1, 3, 503, len(jpeg)]
    with connected(server.url) as client:
        client.send(
            b"POST /predict HTTP/1.1\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for start, end in pairwise(cuts):
            client.send(b"%x\r\n%b\r\n" % (end - start, jpeg[start:end]))
        client.send(b"0\r\n\r\n")
        assert client.answer()[0] == 200


def test_upgrade_to_http_2_is_ignored(server: Running) -> None:
    """A request that offers HTTP/2 gets a response in HTTP/1.1, and so does the next one."""
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk"
    with connected(server.url) as client:
        for request in (GET.replace(b"Host: x", upgrade), GET):
            client.send(request)
            assert client.answer()[0] == 200


# Clients that do not read or disconnect


def test_client_that_never_reads_is_disconnected(strict_server: Running) -> None:
    """A client that does not read its responses is disconnected, which frees them."""
    rejected = one_more_rejected(strict_server, "write_timeout")
    path = re.search(r'src="(\S+swagger-ui-bundle.js)"', strict_server.client.get("/docs").text)
    assert path is not None
    with connected(strict_server.url, receive_buffer=4096) as client:
        # The script of the page ten times, which is more than the kernel buffers.
        client.send(f"GET {path[1]} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 10)
        strict_server.wait_for(rejected)


def test_disconnect_during_inference_counts_as_cancelled(server: Running, jpeg: bytes) -> None:
    """If the client disconnects, its image on the device is finished, and the next image is classified."""
    cancelled = server.metric("inference_images_total", outcome="cancelled")
    with server.runtime.held():
        connection = send_only(server, jpeg)
        assert server.runtime.begun.acquire(timeout=30)
        reset(connection)
        server.wait_for(lambda: server.metric("inference_images_total", outcome="cancelled") == cancelled + 1)
        server.runtime.release()
    assert server.client.post("/predict", files={"file": jpeg}).status_code == 200


# The number of connections


def test_connection_limit_closes_idle_then_new_connections(jpeg: bytes) -> None:
    """At the limit, the longest idle connection is closed for a new one; if none is idle, the new one is."""
    with serving(Settings(model="cifar10", max_connections=4, workers=0)) as server, ExitStack() as stack:
        server.client.close()  # its connection is one of the four
        clients = [stack.enter_context(connected(server.url)) for _ in range(4)]
        for client in clients:
            client.send(GET)
            assert client.answer()[0] == 200
        clients[0].send(GET)  # the first is not the longest idle any more
        assert clients[0].answer()[0] == 200
        new = stack.enter_context(connected(server.url))
        new.send(GET)
        assert new.answer()[0] == 200
        assert clients[1].is_closed()
        with server.runtime.held():
            working = [clients[0], *clients[2:], new]
            for client in working:
                client.send(post(jpeg, "Expect: 100-continue"))
                assert client.status() == 100  # the server has read the request headers
                client.skip_line()
            assert server.runtime.begun.acquire(timeout=30)
            assert stack.enter_context(connected(server.url)).is_closed()
            server.runtime.release()
            assert [client.answer()[0] for client in working] == [200] * 4


def test_10000_idle_connections_do_not_prevent_inference(jpeg: bytes) -> None:
    """With as many idle connections, images are classified and /healthz responds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = 30_000
    count = min(10_000, (hard - 1000) // 2)  # both ends are files of this process
    if count < 1000:
        pytest.skip(f"needs more than {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with serving(Settings(model="cifar10", header_timeout_s=120)) as server, ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(connected(server.url))
            server.wait_for(lambda: server.metric("inference_connections") > count)
            assert server.client.post("/predict", files={"file": jpeg}).status_code == 200
            assert httpx.get(f"{server.url}/healthz").status_code == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
