"""What clients may do to their connections: slow, endless, broken, too many, unread."""

import re
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx
import pytest

from resnet_service.settings import Settings
from tests.support.http import connected, post
from tests.support.images import encode, make_image
from tests.support.server import Running, serving

REJECTED = "inference_connections_rejected_total"
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def impatient() -> Iterator[Running]:
    """A server that waits for nobody."""
    settings = Settings(model="bundled", header_timeout_s=0.3, read_timeout_s=0.3, max_queue=2, max_batch=1)
    with serving(settings) as running:
        yield running


def exit_on_service_error(server: Running, reason: str) -> Callable[[], bool]:
    """Return what says whether one more connection was rejected for this reason."""
    before = server.metric(REJECTED, reason=reason)
    return lambda: server.metric(REJECTED, reason=reason) == before + 1


@pytest.mark.parametrize("begin", [b"G", b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"\r\n\r\n"])
def test_a_head_that_is_never_finished(impatient: Running, begin: bytes) -> None:
    """A client that sends a part of a head gets 408 when its time is over, and its connection is closed."""
    rejected = exit_on_service_error(impatient, "header_timeout")
    with connected(impatient.url) as client:
        client.send(begin)
        status, headers, problem = client.answer()
        assert status == problem["status"] == 408
        assert headers["content-type"] == "application/problem+json"
        assert "0.3 s" in problem["detail"]
        assert client.is_closed()
    assert rejected()


def test_a_head_byte_by_byte(impatient: Running) -> None:
    """To go on sending does not buy more time."""
    rejected = exit_on_service_error(impatient, "header_timeout")
    with connected(impatient.url) as client:
        client.send(b"GET / HTTP/1.1\r\nX-Slow: ")
        client.socket.settimeout(0.02)
        with suppress(BrokenPipeError, ConnectionResetError):
            while not client.has_answer():
                client.send(b"x")
    assert rejected()


def test_a_client_that_says_nothing(impatient: Running) -> None:
    """A connection on which nothing is asked is closed without a word."""
    with connected(impatient.url) as client:
        assert client.is_closed()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nX-Large: " + b"x" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X-Many: x\r\n" * 1000 + b"\r\n",
        b"GET / HTTP/1.1\r\nX-Endless: " + b"x" * 1_000_000,
    ],
    ids=["path", "field", "fields", "endless"],
)
def test_a_huge_head(server: Running, head: bytes) -> None:
    """Over 64 KiB or 100 fields a head gets 431, whether it ends or not, and the client can read it."""
    rejected = exit_on_service_error(server, "header_too_large")
    with connected(server.url) as client:
        client.send(head)
        status, _, problem = client.answer()
        assert status == problem["status"] == 431
        assert client.is_closed()
    assert rejected()


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"HELLO\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nX-Smuggled\x00: x\r\n\r\n",
    ],
    ids=["tls", "words", "version", "length", "both lengths", "chunk", "connect", "field name"],
)
def test_what_is_no_http(server: Running, data: bytes) -> None:
    """It gets 400 as a problem, and the connection is closed: what follows on it is not to be trusted."""
    rejected = exit_on_service_error(server, "malformed")
    with connected(server.url) as client:
        client.send(data)
        status, _, problem = client.answer()
        assert status == problem["status"] == 400
        assert client.is_closed()
    assert rejected()


def test_rubbish_after_a_request_leaves_its_answer(server: Running, jpeg: bytes) -> None:
    """What is wrong with the next request does not cost the answer to the one before it."""
    with connected(server.url) as client, server.runtime.held():
        client.send(post(jpeg) + b"rubbish\r\n\r\n")
        assert server.runtime.begun.acquire(timeout=30)
        server.runtime.release()
        status, headers, _ = client.answer()
        assert status == 200
        assert headers["connection"] == "close"
        assert client.is_closed()


def test_pipelined_requests_are_answered_in_order(server: Running, jpeg: bytes) -> None:
    """Requests that are sent before the answers to earlier ones get theirs in turn."""
    with connected(server.url) as client:
        client.send((post(jpeg) + GET + post(b"rubbish") + GET) * 10)
        statuses = [client.answer()[0] for _ in range(40)]
    assert statuses == [200, 200, 415, 200] * 10


def test_endless_pipelining_is_cut_off(server: Running, jpeg: bytes) -> None:
    """A hundred requests may wait on a connection for the one before them; more end it."""
    rejected = exit_on_service_error(server, "pipelined")
    with connected(server.url) as client, server.runtime.held():
        client.send(post(jpeg))
        assert server.runtime.begun.acquire(timeout=30)
        client.send(GET * 500)
        assert client.is_closed()
    assert rejected()


def test_a_connection_outlives_errors(impatient: Running, jpeg: bytes) -> None:
    """A rejected image, a missing path and half an image leave the connection in order."""
    with connected(impatient.url) as client:
        client.send(post(b"rubbish"))
        assert client.answer()[0] == 415
        client.send(post(jpeg, path="/nowhere"))
        assert client.answer()[0] == 404
        client.send(post(jpeg[:200]))
        assert client.answer()[0] == 422
        client.send(post(jpeg))
        assert client.answer()[0] == 200


def test_a_full_queue_rejects_before_the_body_is_sent(impatient: Running, jpeg: bytes) -> None:
    """429 comes at the request's head, also instead of 100 Continue; the connection goes on."""
    with ThreadPoolExecutor(3) as pool, impatient.runtime.held(), connected(impatient.url) as client:
        first = pool.submit(
            impatient.client.post, "/predict", content=jpeg, headers={"Content-Type": "image/jpeg"}
        )
        assert impatient.runtime.begun.acquire(timeout=30)
        waiting = [
            pool.submit(
                impatient.client.post, "/predict", content=jpeg, headers={"Content-Type": "image/jpeg"}
            )
            for _ in range(2)
        ]
        impatient.wait_for(lambda: impatient.metric("inference_queue_depth") == 2)
        request = post(jpeg)
        head = len(request) - len(jpeg)
        client.send(request[:head])
        status, headers, _ = client.answer()
        assert status == 429
        assert int(headers["retry-after"]) >= 1
        client.send(request[head:])  # thrown away
        client.send(post(jpeg, "Expect: 100-continue")[: -len(jpeg)])
        assert client.answer()[0] == 429
        impatient.runtime.release()
        assert [answer.result().status_code for answer in (first, *waiting)] == [200] * 3


def test_a_body_after_the_answer_has_an_end(impatient: Running) -> None:
    """Whoever was rejected and goes on sending for ever is cut off."""
    head = b"POST /predict HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: 999999999999\r\n\r\n"
    with connected(impatient.url) as client:
        client.send(head)
        assert client.answer()[0] == 415
        client.send_until_cut_off(b"x" * 100)


def test_a_large_body_at_once(server: Running) -> None:
    """An image that comes together with its head is no part of the head, however large."""
    image = encode(make_image(256, 192, seed=1), "BMP")
    with connected(server.url) as client:
        for _ in range(3):
            client.send(post(image))
            assert client.answer()[0] == 200


@pytest.mark.parametrize("strays", [b"0\r\nX-Trailer: ", b"1;extension="], ids=["trailer", "extension"])
def test_endless_bytes_that_are_no_body(server: Running, strays: bytes) -> None:
    """A trailer or a chunk's extension without end is rejected as a head would be."""
    rejected = exit_on_service_error(server, "header_too_large")
    with connected(server.url) as client:
        client.send(
            b"POST /predict HTTP/1.1\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        client.send(strays)
        client.send_until_cut_off(b"x" * 65_536)
    assert rejected()


def test_a_head_behind_a_request_has_its_time_too(impatient: Running) -> None:
    """A part of a head that comes together with a whole request gets 408 after that one's answer."""
    with connected(impatient.url) as client:
        client.send(GET + b"GET / HT")
        assert client.answer()[0] == 200
        assert client.answer()[0] == 408
        assert client.is_closed()


def test_a_rejected_connection_may_idle(impatient: Running, jpeg: bytes) -> None:
    """After an answer that came before the body, and the body, a connection may idle as long as any other."""
    request = post(jpeg).replace(b"image/jpeg", b"text/plain")
    head = len(request) - len(jpeg)
    with connected(impatient.url) as client:
        client.send(request[:head])
        assert client.answer()[0] == 415
        client.send(request[head:])
        with connected(impatient.url) as other:  # one that is closed for its silence after the same time
            assert other.is_closed()
        client.send(GET)
        assert client.answer()[0] == 200


def test_a_get_with_a_body_takes_no_memory(server: Running) -> None:
    """What comes of a body that nobody asked for is thrown away, while the request is at work."""
    with server.runtime.held(), connected(server.url) as client:
        client.send(b"GET /bench?iterations=1&batch_sizes=1 HTTP/1.1\r\nContent-Length: 5000000\r\n\r\n")
        assert server.runtime.begun.acquire(timeout=30)
        client.send(bytes(5_000_000))
        assert server.metric("inference_upload_bytes") == 0
        server.runtime.release()
        assert client.answer()[0] == 200


def test_a_body_in_chunks(server: Running, jpeg: bytes) -> None:
    """A body without a length, in chunks of any size, is a body like any other."""
    head = (
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    sizes = [1, 2, 500, len(jpeg) - 503]
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    with connected(server.url) as client:
        client.send(head)
        for size, end in zip(sizes, ends, strict=True):
            client.send(b"%x\r\n%b\r\n" % (size, jpeg[end - size : end]))
        client.send(b"0\r\n\r\n")
        assert client.answer()[0] == 200


def test_an_upgrade_is_declined(server: Running, jpeg: bytes) -> None:
    """A client that would rather speak HTTP/2 is answered in HTTP/1.1, now and on its next request."""
    with connected(server.url) as client:
        client.send(
            post(jpeg, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
        )
        assert client.answer()[0] == 200
        client.send(GET)
        assert client.answer()[0] == 200


def test_an_answer_that_nobody_reads(impatient: Running) -> None:
    """A client that asks and does not read is cut off, and what it was to get is freed."""
    rejected = exit_on_service_error(impatient, "write_timeout")
    path = re.search(r'src="(\S+swagger-ui-bundle.js)"', impatient.client.get("/docs").text)
    assert path is not None
    with connected(impatient.url, receive_buffer=4096) as client:
        # Ten times the script of the page: more than the kernel keeps.
        client.send(f"GET {path[1]} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 10)
        impatient.wait_for(rejected)


def test_a_client_that_hangs_up_while_it_is_read(server: Running, jpeg: bytes) -> None:
    """Half an image, and then nobody: the request ends, is counted as 499, and its memory is free."""
    counted = {"route": "/predict", "status": "499"}
    before = server.metric("inference_request_seconds_count", **counted)
    with connected(server.url) as client:
        client.send(post(jpeg)[: -len(jpeg) // 2])
        server.wait_for(lambda: server.metric("inference_upload_bytes") > 0)
    server.wait_for(lambda: server.metric("inference_request_seconds_count", **counted) == before + 1)
    assert server.metric("inference_upload_bytes") == 0


def test_a_client_that_hangs_up_while_it_runs(server: Running, jpeg: bytes) -> None:
    """What is on the device is run to its end, for nobody, and the next image is answered."""
    cancelled = server.metric("inference_images_total", outcome="cancelled")
    with server.runtime.held():
        with connected(server.url) as client:
            client.send(post(jpeg))
            assert server.runtime.begun.acquire(timeout=30)
        server.wait_for(lambda: server.metric("inference_images_total", outcome="cancelled") == cancelled + 1)
        server.runtime.release()
    assert server.client.post("/predict", files={"file": jpeg}).status_code == 200


def test_the_memory_of_uploads_is_bounded() -> None:
    """Bodies that do not fit beside those at work get 429; the memory is free once these are answered."""
    image = encode(make_image(), "BMP")
    settings = Settings(model="bundled", upload_memory_mb=1.5 * len(image) / 1e6)
    with serving(settings) as server, ThreadPoolExecutor(1) as pool:
        with server.runtime.held():
            first = pool.submit(server.client.post, "/predict", files={"file": image})
            assert server.runtime.begun.acquire(timeout=30)
            assert server.metric("inference_upload_bytes") > len(image)
            second = server.client.post("/predict", files={"file": image})
            assert second.status_code == 429
            assert "memory" in second.json()["detail"]
            assert second.headers["retry-after"] == "1"
            server.runtime.release()
            assert first.result().status_code == 200
        assert server.metric("inference_upload_bytes") == 0
        assert server.client.post("/predict", files={"file": image}).status_code == 200


def test_what_is_thrown_away_takes_no_memory() -> None:
    """An upload over its limit is rejected as such, and what still comes of it is held nowhere."""
    settings = Settings(model="bundled", max_upload_mb=0.05, upload_memory_mb=0.5)
    with serving(settings) as server, connected(server.url) as client:
        client.send(
            b"POST /predict HTTP/1.1\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(100):
            client.send(b"2710\r\n" + bytes(10_000) + b"\r\n")
        client.send(b"0\r\n\r\n")
        assert client.status() == 413
        server.wait_for(lambda: server.metric("inference_upload_bytes") == 0)
        assert server.metric("inference_rejected_total", reason="memory") == 0


def test_too_many_connections(jpeg: bytes) -> None:
    """Beyond the limit the longest idle makes room; where all are at work, the new one gets 503."""
    with serving(Settings(model="bundled", max_connections=4)) as server, ExitStack() as stack:
        server.client.close()  # its connection is one of the four
        clients = [stack.enter_context(connected(server.url)) for _ in range(4)]
        for client in clients:
            client.send(GET)
            assert client.answer()[0] == 200
        clients[0].send(GET)  # no longer the one that has been idle longest
        assert clients[0].answer()[0] == 200
        new = stack.enter_context(connected(server.url))
        new.send(GET)
        assert new.answer()[0] == 200
        assert clients[1].is_closed()
        with server.runtime.held():
            working = [clients[0], *clients[2:], new]
            for client in working:
                client.send(post(jpeg, "Expect: 100-continue"))
                assert client.status() == 100  # it is being read
                client.skip_line()
            assert server.runtime.begun.acquire(timeout=30)
            rejected = stack.enter_context(connected(server.url))
            status, _, problem = rejected.answer()
            assert status == 503
            assert "connections" in problem["detail"]
            server.runtime.release()
            assert [client.answer()[0] for client in working] == [200] * 4


def test_ten_thousand_idle_connections(jpeg: bytes) -> None:
    """With as many connections that ask nothing, images are classified as before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = 30_000
    count = min(10_000, (hard - 1000) // 2)  # both ends are files of this process
    if count < 1000:
        pytest.skip(f"needs more than {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with serving(Settings(model="bundled", header_timeout_s=120)) as server, ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(connected(server.url))
            server.wait_for(lambda: server.metric("inference_connections") > count)
            assert server.client.post("/predict", files={"file": jpeg}).status_code == 200
            assert httpx.get(f"{server.url}/healthz").status_code == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
