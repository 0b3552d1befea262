"""The load generator: arrival times, responses in pieces, and requests without a response."""

import asyncio
import math
import socket
from collections.abc import Iterator

import pytest

from load_tests.http_connection import get_request, post_request
from load_tests.load_generator import LoadGenerator, arrival_times, measure_capacity, run_async
from load_tests.request_log import DISCONNECTED, NO_RESPONSE, RequestLog, RequestRecord
from load_tests.service import LoadTestError


@pytest.fixture
def silent_url() -> Iterator[str]:
    """Yield the URL of a server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_number_of_arrivals_follows_the_rate() -> None:
    """A Poisson process depends on its seed; without a seed arrivals are evenly spaced."""
    assert len(list(arrival_times(1000, 10, seed=1))) == pytest.approx(10_000, rel=0.05)
    first, second, other = (list(arrival_times(50, 1, seed)) for seed in (1, 1, 2))
    assert first == second != other
    assert list(arrival_times(4, 1, seed=None)) == [0, 0.25, 0.5, 0.75]


def test_requests_without_response_are_recorded_with_the_reason(silent_url: str) -> None:
    """The reasons are: the client disconnected, the run ended, too many connections are in use."""

    async def send() -> RequestLog:
        request = post_request(silent_url, b"body", "typical")
        async with LoadGenerator(silent_url, max_connections=1) as generator:
            await generator.send(request._replace(disconnect_after=10), 0.0)
            await generator.run_open_loop([(0.1, request), (0.2, request)], grace_s=0)
            return generator.log(1)

    log = run_async(send())
    assert list(log.error) == [DISCONNECTED, NO_RESPONSE, "TooManyConnectionsError"]
    assert list(log.outcome) == ["disconnected", "failed", "failed"]


def test_capacity_of_a_server_that_is_down_is_an_error() -> None:
    """The message has the name of the operating system's error."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(LoadTestError, match="ConnectionRefusedError"):
            measure_capacity(url, [get_request(url, "/healthz")], connections=2, seconds=1)


def test_capacity_of_a_server_slower_than_the_time_is_measured() -> None:
    """Responses after the end of sending count, and so does the time that they took."""

    async def measure() -> float:
        both_sent = asyncio.Barrier(2)

        async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await both_sent.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            return await asyncio.to_thread(measure_capacity, url, [get_request(url, "/")], 2, 1e-6)

    assert asyncio.run(measure()) > 0


def test_url_of_another_protocol_is_an_error() -> None:
    """Only http and https are supported."""
    with pytest.raises(LoadTestError, match="ftp://x is not"):
        LoadGenerator("ftp://x")


def test_response_in_pieces_is_parsed_and_its_connection_closed() -> None:
    """Headers are read however they are split; a connection with Connection: close is not reused."""
    connections = 0
    pieces = (
        b"HTTP/1.1 429 Too",
        b" Many\r\nRetry-After: 7\r\nConnection: close\r\nServer-Timing: read;dur=1.00, decode;dur=2.50",
        b", queue;dur=4.00, total;dur=9.00\r\nContent-Length: 2\r\n\r\n{",
        b"}",
    )

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        writer.close()

    async def send() -> list[RequestRecord]:
        async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with LoadGenerator(url) as generator:
                return [await generator.send(get_request(url, "/"), generator.elapsed_s) for _ in range(2)]

    for record in run_async(send()):
        assert (record.status, record.retry_after_s) == (429, 7.0)
        assert (record.decode_s, record.queue_s) == (0.0025, 0.004)
        assert math.isnan(record.device_s)
    assert connections == 2
