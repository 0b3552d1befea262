"""HTTPConnection in memory, with a manual clock: timeouts, unread responses and the number of connections."""

from collections.abc import Iterator

import pytest

from tests.support.memory_server import (
    BODY_TIMEOUT_S,
    CHUNKED,
    GET,
    HALF_CLOSE_S,
    HEADER_TIMEOUT_S,
    KEEP_ALIVE_S,
    LIMIT,
    MemoryServer,
    memory_server,
    post,
)
from tests.support.memory_transport import MemoryTransport


@pytest.fixture
def server() -> Iterator[MemoryServer]:
    with memory_server() as running:
        yield running


@pytest.fixture
def client(server: MemoryServer) -> MemoryTransport:
    return server.connect()


# Time for request headers


@pytest.mark.parametrize("start", [b"G", b"POST / HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"\r\n\r\n"])
def test_incomplete_headers_get_408_after_header_timeout(
    server: MemoryServer, client: MemoryTransport, start: bytes
) -> None:
    """A client that sends a part of the request headers gets 408, and its connection is closed."""
    client.send(start)
    server.loop.advance(HEADER_TIMEOUT_S - 1)
    assert not client.responses()
    server.loop.advance(1)
    assert "headers" in server.check_rejected(client, "header_timeout", 408)


def test_sending_header_bytes_does_not_extend_header_timeout(
    server: MemoryServer, client: MemoryTransport
) -> None:
    """A client that sends its headers byte by byte gets 408 after the same time."""
    client.send(b"GET / HTTP/1.1\r\nX-Slow: ")
    for _ in range(int(HEADER_TIMEOUT_S)):
        assert not client.has_eof
        client.send(b"x")
        server.loop.advance(1)
    server.check_rejected(client, "header_timeout", 408)


def test_silent_connection_is_closed_without_response(server: MemoryServer, client: MemoryTransport) -> None:
    """A connection without any byte of a request is closed after the header timeout."""
    server.loop.advance(HEADER_TIMEOUT_S)
    assert client.is_lost
    assert not client.responses()
    assert server.rejected("header_timeout") == 0


@pytest.mark.parametrize("path", ["/", "/early"])
def test_incomplete_pipelined_headers_get_408(
    server: MemoryServer, client: MemoryTransport, path: str
) -> None:
    """A part of request headers that arrives before the previous response gets 408 after it."""
    client.send(post(b"", path) + b"GET / HT")
    assert len(client.responses()) == 1
    client.send(b"TP")
    server.loop.advance(HEADER_TIMEOUT_S)
    server.check_rejected(client, "header_timeout", 408)


# Time for bodies and between requests


def test_body_after_early_response_is_limited_in_time(server: MemoryServer, client: MemoryTransport) -> None:
    """A client that got a response and continues to send its body is closed after the body timeout."""
    client.send(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n")
    assert [response.status for response in client.responses()] == [415]
    for _ in range(int(BODY_TIMEOUT_S)):
        assert not client.is_lost
        client.send(b"x" * 100)
        server.loop.advance(1)
    assert client.is_lost


def test_rejected_connection_can_idle_for_keep_alive_time(
    server: MemoryServer, client: MemoryTransport
) -> None:
    """After an early response and the rest of the body, the keep-alive timeout holds, not a shorter one."""
    request = post(b"12", "/early")
    client.send(request[:-2])
    client.send(request[-2:])
    server.loop.advance(KEEP_ALIVE_S - 1)
    client.send(GET)
    assert [response.status for response in client.responses()] == [415, 200]
    server.loop.advance(KEEP_ALIVE_S)
    assert client.is_lost


def test_keep_alive_connection_is_closed_when_idle(server: MemoryServer, client: MemoryTransport) -> None:
    """Each response starts the keep-alive timeout anew, whatever the request headers took."""
    for _ in range(3):
        client.send(GET)
        assert [response.status for response in client.responses()] == [200]
        server.loop.advance(KEEP_ALIVE_S - 1)
        assert not client.is_lost
    server.loop.advance(1)
    assert client.is_lost
    assert not client.responses()


def test_incomplete_headers_on_keep_alive_connection_get_408(
    server: MemoryServer, client: MemoryTransport
) -> None:
    """The header timeout also holds for later requests of a connection."""
    client.send(GET)
    client.responses()
    server.loop.advance(HEADER_TIMEOUT_S * 2)
    client.send(GET[:5])
    server.loop.advance(HEADER_TIMEOUT_S)
    server.check_rejected(client, "header_timeout", 408)


# Clients that do not read or disconnect


def test_unread_response_aborts_connection(server: MemoryServer, client: MemoryTransport) -> None:
    """A client that reads nothing of its response for the body timeout is closed."""
    client.client_reads = False
    client.send(post(b"", "/large"))
    server.loop.advance(BODY_TIMEOUT_S)
    assert client.is_lost
    assert server.rejected("write_timeout") == 1


def test_slowly_read_response_does_not_abort_connection(
    server: MemoryServer, client: MemoryTransport
) -> None:
    """A client that reads a part of its response within the body timeout receives the rest later."""
    client.client_reads = False
    client.send(post(b"", "/large"))
    client.read(500_000)
    server.loop.advance(BODY_TIMEOUT_S)
    client.read(1_000_000)
    [response] = client.responses()
    assert len(response.body) == 1_000_000
    assert server.rejected("write_timeout") == 0


def test_keep_alive_timeout_aborts_connection_with_unread_response(
    server: MemoryServer, client: MemoryTransport
) -> None:
    """A response so small that writing is not paused does not keep the connection open."""
    client.client_reads = False
    client.send(GET)
    server.loop.advance(KEEP_ALIVE_S)
    assert client.is_lost
    assert server.rejected("write_timeout") == 1


def test_unread_last_response_aborts_connection(server: MemoryServer, client: MemoryTransport) -> None:
    """A connection that closes after its response waits for the client no longer than the body timeout."""
    client.client_reads = False
    client.send(GET.replace(b"Host: x", b"Connection: close"))
    assert not client.is_lost
    server.loop.advance(BODY_TIMEOUT_S)
    assert client.is_lost
    assert server.rejected("write_timeout") == 1


@pytest.mark.parametrize("error", [None, ConnectionResetError()], ids=["closed", "reset"])
def test_disconnect_reaches_application_and_frees_connection(
    server: MemoryServer, client: MemoryTransport, error: Exception | None
) -> None:
    """The application learns of a disconnect in the middle of a body, and no timer remains."""
    client.send(post(bytes(10))[:-5])
    client.disconnect(error)
    assert server.app.disconnects == 1
    assert server.registry.open == 0
    assert not server.registry.idle
    server.loop.advance(1_000)
    assert sum(server.rejected(reason) for reason in ("header_timeout", "write_timeout")) == 0


# Clients that stop sending, and still read


@pytest.mark.parametrize(
    "request_",
    [GET, post(b"", "/wait"), post(bytes(200_000)), post(bytes(200_000), "/wait"), CHUNKED + b"0\r\n\r\n"],
    ids=["GET", "wait", "large body", "large body later", "chunked"],
)
def test_half_closed_client_gets_its_response(
    server: MemoryServer, client: MemoryTransport, request_: bytes
) -> None:
    """A client that stops sending right after its request gets the response, and then the end."""
    client.send(request_)
    client.half_close()
    server.app.release.set()
    server.loop.settle()
    [response] = client.responses()
    assert response.status == 200
    assert client.is_lost


def test_half_closed_client_gets_response_that_takes_long(
    server: MemoryServer, client: MemoryTransport
) -> None:
    """The response may begin long after the client has stopped sending."""
    client.send(post(b"", "/wait"))
    server.loop.advance(HALF_CLOSE_S - 0.01)
    client.half_close()
    server.loop.advance(20)
    assert not client.is_lost
    server.app.release.set()
    server.loop.settle()
    [response] = client.responses()
    assert response.headers["connection"] == "close"
    assert client.is_lost


def test_half_closed_client_gets_responses_to_pipelined_requests(
    server: MemoryServer, client: MemoryTransport
) -> None:
    """All complete requests get their responses, also if a part of another one follows them."""
    client.send(post(b"", "/wait") + GET + GET)
    client.send(b"GET")
    client.half_close()
    server.app.release.set()
    server.loop.settle()
    assert [response.status for response in client.responses()] == [200] * 3
    assert client.is_lost


def test_half_close_during_response_does_not_cut_it_off(
    server: MemoryServer, client: MemoryTransport
) -> None:
    """A client that stops sending while it reads its response receives all of it."""
    client.client_reads = False
    client.send(post(b"", "/large"))
    server.loop.advance(10)
    client.half_close()
    client.read(2_000_000)
    [response] = client.responses()
    assert len(response.body) == 1_000_000
    assert client.is_lost


def test_late_half_close_is_a_disconnect(server: MemoryServer, client: MemoryTransport) -> None:
    """A client that stops sending while it waits has given up: the application learns of it."""
    client.send(post(b"", "/wait"))
    server.loop.advance(HALF_CLOSE_S + 0.01)
    client.half_close()
    assert client.is_lost
    server.app.release.set()
    server.loop.settle()
    assert server.app.disconnects == 1


def test_half_close_after_body_that_was_left_unread_is_a_disconnect(
    server: MemoryServer, client: MemoryTransport
) -> None:
    """A client whose body waited in the socket may have given up meanwhile."""
    client.send(post(bytes(100_000), "/wait"))
    server.loop.advance(HALF_CLOSE_S + 0.01)
    client.half_close()
    server.app.release.set()
    server.loop.settle()
    assert client.is_lost
    assert not client.responses()


def test_slow_upload_before_half_close_gets_its_response(
    server: MemoryServer, client: MemoryTransport
) -> None:
    """The time that the client takes to send its body does not count, and neither do earlier requests."""
    client.send(post(bytes(200_000), "/wait"))
    server.loop.advance(HALF_CLOSE_S + 0.01)
    server.app.release.set()
    server.loop.settle()
    client.send(post(bytes(5))[:-5])
    for _ in range(5):
        server.loop.advance(5)
        client.send(b"x")
    client.half_close()
    assert [response.status for response in client.responses()] == [200, 200]
    assert client.is_lost


@pytest.mark.parametrize("data", [b"", GET[:10], post(bytes(10))[:-5], CHUNKED + b"5\r\n"])
def test_half_close_before_end_of_request_closes_connection(
    server: MemoryServer, client: MemoryTransport, data: bytes
) -> None:
    """A request that can never be complete is dropped at once."""
    client.send(data)
    client.half_close()
    assert client.is_lost
    assert not client.responses()
    assert server.registry.open == 0


# The number of connections


def test_connection_over_limit_closes_longest_idle(server: MemoryServer) -> None:
    """If some connections are idle, the one that has been idle longest is closed for the new one."""
    clients = [server.connect() for _ in range(LIMIT)]
    for client in [*clients, clients[0]]:  # the first is not the longest idle any more
        client.send(GET)
        assert [response.status for response in client.responses()] == [200]
    new = server.connect()
    new.send(GET)
    assert [response.status for response in new.responses()] == [200]
    assert [client.is_lost for client in clients] == [False, True, False, False]
    assert server.rejected("limit") == 1
    assert server.registry.open == LIMIT


def test_incomplete_request_counts_as_idle(server: MemoryServer) -> None:
    """A client that sends its request slowly does not keep new clients out."""
    slow = server.connect()
    slow.send(post(bytes(10))[:-5])
    for _ in range(LIMIT):
        server.connect().send(post(b"", "/wait"))
    assert slow.is_lost


def test_rejected_connections_count_as_idle(server: MemoryServer) -> None:
    """Clients that may still read why they were rejected do not keep new ones out."""
    for _ in range(LIMIT):
        server.connect().send(b"rubbish\r\n\r\n")
    client = server.connect()
    client.send(GET)
    assert [response.status for response in client.responses()] == [200]
    assert server.registry.open == LIMIT


def test_connection_over_limit_is_closed_if_none_is_idle(server: MemoryServer) -> None:
    """If every connection has a complete request, new ones are closed, and the others get their responses."""
    clients = [server.connect() for _ in range(LIMIT)]
    for client in clients:
        client.send(post(b"", "/wait"))
    assert all(server.connect().is_lost for _ in range(200))
    assert server.registry.open == LIMIT
    assert server.rejected("limit") == 200
    server.app.release.set()
    server.loop.settle()
    assert [response.status for client in clients for response in client.responses()] == [200] * LIMIT
