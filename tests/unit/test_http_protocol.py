"""HTTPConnection in memory: size of request headers, malformed requests, pipelining, bodies and upgrades."""

from collections.abc import Iterator

import pytest

from tests.support.memory_server import CHUNKED, GET, MemoryServer, memory_server, post
from tests.support.memory_transport import MemoryTransport


@pytest.fixture
def server() -> Iterator[MemoryServer]:
    with memory_server() as running:
        yield running


@pytest.fixture
def client(server: MemoryServer) -> MemoryTransport:
    return server.connect()


# Size of request headers


@pytest.mark.parametrize(
    "headers",
    [
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nX-Large: " + b"x" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X-Many: x\r\n" * 101 + b"\r\n",
        b"GET / HTTP/1.1\r\nX-Endless: " + b"x" * 1_000_000,
    ],
    ids=["path", "field", "fields", "endless"],
)
def test_large_headers_get_431(server: MemoryServer, client: MemoryTransport, headers: bytes) -> None:
    """Over 64 KiB or 100 fields, request headers get 431, complete or not."""
    client.send(headers)
    assert "65,536 bytes or 100 fields" in server.check_rejected(client, "header_too_large", 431)


@pytest.mark.parametrize(
    "headers",
    [
        b"GET /" + b"x" * 60_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X-Many: x\r\n" * 100 + b"\r\n",
    ],
    ids=["path", "fields"],
)
def test_headers_within_limits_are_accepted(client: MemoryTransport, headers: bytes) -> None:
    """60,000 bytes and 100 fields are within the limits, also for each further request."""
    for _ in range(3):
        client.send(headers)
        assert [response.status for response in client.responses()] == [200]


@pytest.mark.parametrize(
    "data",
    [
        b"0\r\nX-Trailer: " + b"x" * 200_000,
        b"1;extension=" + b"x" * 200_000,
        b"0\r\n" + b"X-Many: x\r\n" * 101,
    ],
    ids=["trailer", "extension", "trailers"],
)
def test_endless_trailer_or_chunk_extension_aborts_connection(
    server: MemoryServer, client: MemoryTransport, data: bytes
) -> None:
    """Bytes of a chunked request that are not its body count as request headers."""
    client.send(CHUNKED)
    client.send(data)
    assert client.is_lost
    assert server.rejected("header_too_large") == 1
    assert server.app.disconnects == 1


def test_body_in_same_packet_as_headers_does_not_count_as_headers(client: MemoryTransport) -> None:
    """A large body that arrives together with its headers is read, again and again."""
    for _ in range(3):
        client.send(post(bytes(150_000)))
        assert [response.body for response in client.responses()] == [b"150000"]


def test_waiting_request_has_little_of_its_body_in_memory(
    server: MemoryServer, client: MemoryTransport
) -> None:
    """At most 64 KiB are read together with the headers; the rest follows in larger parts, once it may."""
    client.send(post(bytes(1_000_000), path="/wait"))
    server.app.release.set()
    server.loop.settle()
    assert [response.body for response in client.responses()] == [b"1000000"]
    first, *others = server.app.part_sizes
    assert 60_000 < first <= 65_536
    assert max(others) == 262_144


# Malformed requests


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"HELLO\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nX-Smuggled\x00: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nhost: x\r\n\r\n",
    ],
    ids=["TLS", "words", "version", "length", "both lengths", "CONNECT", "field name", "two hosts"],
)
def test_malformed_request_gets_400(server: MemoryServer, client: MemoryTransport, data: bytes) -> None:
    """A malformed request gets 400 as a problem, and the connection is closed."""
    client.send(data)
    client.send(GET)  # data after it is ignored
    assert server.check_rejected(client, "malformed", 400).startswith("malformed")


def test_error_below_v2_has_the_format_of_the_protocol(client: MemoryTransport) -> None:
    """As far as the path is known, an error before the request is complete has the format of its API."""
    client.send(b"GET /v2/models HTTP/1.1\r\nX-Large: " + b"x" * 70_000)
    [response] = client.responses()
    assert response.status == 431
    assert list(response.problem) == ["error"]


def test_malformed_next_request_keeps_previous_response(
    server: MemoryServer, client: MemoryTransport
) -> None:
    """The request before a malformed one gets its response, which is the last on the connection."""
    client.send(post(b"", "/wait") + b"rubbish\r\n\r\n")
    server.app.release.set()
    server.loop.settle()
    [response] = client.responses()
    assert response.status == 200
    assert response.headers["connection"] == "close"
    assert client.is_lost


def test_malformed_body_aborts_connection(server: MemoryServer, client: MemoryTransport) -> None:
    """The response to a request with a malformed chunk may have started, so an error cannot be sent."""
    client.send(CHUNKED)
    client.send(b"zz\r\n")
    assert client.is_lost
    assert not client.responses()
    assert server.rejected("malformed") == 1
    assert server.app.disconnects == 1


# Pipelining


def test_pipelined_requests_get_responses_in_order(server: MemoryServer, client: MemoryTransport) -> None:
    """Requests that arrive before the responses to earlier ones get theirs in order."""
    client.send((post(b"", "/wait") + GET + post(b"12", "/early") + post(b"123")) * 10)
    assert not client.responses()
    server.app.release.set()
    server.loop.settle()
    assert [response.body for response in client.responses()] == [b"0", b"0", b"early", b"3"] * 10


def test_more_than_100_pipelined_requests_abort_connection(
    server: MemoryServer, client: MemoryTransport
) -> None:
    """100 requests of a connection may wait for the one before them."""
    client.send(post(b"", "/wait") + GET * 100)
    assert not client.is_lost
    client.send(GET * 400)
    server.app.release.set()
    server.loop.settle()
    assert client.is_lost
    assert server.rejected("pipelined") == 1


# Bodies and upgrades


def test_chunked_body_is_accepted(client: MemoryTransport) -> None:
    """A body without a length, in chunks of any size, is read."""
    client.send(CHUNKED)
    for size in (1, 2, 500, 70_000):
        client.send(b"%x\r\n%b\r\n" % (size, bytes(size)))
    client.send(b"0\r\n\r\n")
    assert [response.body for response in client.responses()] == [b"70503"]


def test_expect_100_continue_gets_final_response_instead_if_rejected(client: MemoryTransport) -> None:
    """100 Continue is sent when the application reads the body, and not if it responds before."""
    request = post(b"12", "/", "Expect: 100-continue")
    client.send(request[:-2])
    assert [response.status for response in client.responses()] == [100]
    client.send(b"12")
    client.send(request.replace(b"POST /", b"POST /early")[:-2])
    assert [response.status for response in client.responses()] == [200, 415]


UPGRADE = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk"


def test_upgrade_is_ignored(client: MemoryTransport) -> None:
    """A request that offers HTTP/2 gets a response in HTTP/1.1, and so does the next one."""
    for request in (GET.replace(b"Host: x", UPGRADE.encode()), GET):
        client.send(request)
        assert [response.body for response in client.responses()] == [b"0"]


@pytest.mark.parametrize("request_", [post(GET, "/", UPGRADE), CHUNKED.replace(b"Host: x", UPGRADE.encode())])
def test_upgrade_request_with_body_gets_400(
    server: MemoryServer, client: MemoryTransport, request_: bytes
) -> None:
    """The body of such a request, whose end the parser does not find, is not taken for another request."""
    client.send(request_)
    assert "upgrade" in server.check_rejected(client, "malformed", 400)
