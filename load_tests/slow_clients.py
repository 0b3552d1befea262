"""Thousands of idle or slow connections: their memory, and their effect on another client."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

import psutil

from load_tests.http_connection import Request, post_request
from load_tests.images import encoded_images
from load_tests.load_generator import LoadGenerator, run_async
from load_tests.report import Check
from load_tests.request_log import RequestLog

ConnectionKind = Literal["idle", "slow"]
"""Connections that send nothing, or one byte of request headers per second."""

_NAMES: Final = {"idle": "idle connections", "slow": "slow clients"}
_REQUEST_INTERVAL_S: Final = 0.05
_BYTE_INTERVAL_S: Final = 1.0
_OPENED_AT_ONCE: Final = 200
_MAX_SLOWDOWN: Final = 2.0
_SLOWDOWN_MARGIN_S: Final = 0.02
_MAX_MEMORY_KB: Final = 64.0


@dataclass(frozen=True)
class SlowClientsResult:
    """The requests of another client without (`alone`) and with (`beside`) the connections.

    `closed` is the number of connections that the service closed; memory is in bytes.
    """

    kind: ConnectionKind
    count: int
    seconds: float
    alone: RequestLog
    beside: RequestLog
    rss_before: int
    rss_with: int
    closed: int

    def checks(self) -> Iterator[Check]:
        """Yield each guarantee with its measured value."""
        name = f"{self.count:,} {_NAMES[self.kind]}"
        alone_s, beside_s = (log.latency(99, log.has_status(200)) for log in (self.alone, self.beside))
        failed = len(self.beside) - int(self.beside.has_status(200).sum())
        yield Check(
            f"{name}: another client's requests succeed",
            f"{failed} of {len(self.beside):,} failed",
            not failed,
        )
        yield Check(
            f"{name}: p99 of the other client at most {_MAX_SLOWDOWN:g} times as high, plus 20 ms",
            f"{beside_s * 1e3:.1f} ms, {alone_s * 1e3:.1f} ms without",
            beside_s <= _MAX_SLOWDOWN * alone_s + _SLOWDOWN_MARGIN_S,
        )
        each_kb = (self.rss_with - self.rss_before) / self.count / 1e3
        yield Check(
            f"{name}: each takes under {_MAX_MEMORY_KB:g} kB", f"{each_kb:.1f} kB", each_kb < _MAX_MEMORY_KB
        )
        if self.kind == "slow":
            yield Check(
                f"{name}: the service closes all",
                f"{self.closed:,} after {self.seconds:.0f} s",
                self.closed == self.count,
            )


def run_slow_clients(
    url: str, pid: int, kind: ConnectionKind, count: int, seconds: float
) -> SlowClientsResult:
    """Keep `count` connections open for `seconds` while another client classifies 20 images per second.

    `pid` is the service's process.
    """
    return run_async(_run(url, psutil.Process(pid), kind, count, seconds))


async def _run(
    url: str, process: psutil.Process, kind: ConnectionKind, count: int, seconds: float
) -> SlowClientsResult:
    request = post_request(url, encoded_images("typical")[0], "typical")
    alone = await _classify_images(url, request, seconds)
    rss_before = process.memory_info().rss
    async with _open_connections(url, kind, count) as connections:
        beside = await _classify_images(url, request, seconds)
        rss_with = process.memory_info().rss
        closed = sum(connection.is_closed for connection in connections)
    return SlowClientsResult(kind, count, seconds, alone, beside, rss_before, rss_with, closed)


async def _classify_images(url: str, request: Request, seconds: float) -> RequestLog:
    async with LoadGenerator(url) as generator:
        requests = [request] * round(seconds / _REQUEST_INTERVAL_S)
        await generator.run_open_loop(zip(itertools.count(0, _REQUEST_INTERVAL_S), requests, strict=False))
        return generator.log(seconds)


class _OpenConnection(asyncio.Protocol):
    transport: asyncio.Transport
    is_closed = False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.is_closed = True


@asynccontextmanager
async def _open_connections(
    url: str, kind: ConnectionKind, count: int
) -> AsyncIterator[list[_OpenConnection]]:
    loop = asyncio.get_running_loop()
    address = urlsplit(url)
    host, port = address.hostname or "", address.port or 80
    connections: list[_OpenConnection] = []
    while len(connections) < count:
        batch = min(_OPENED_AT_ONCE, count - len(connections))
        opening = [loop.create_connection(_OpenConnection, host, port) for _ in range(batch)]
        for transport, connection in await asyncio.gather(*opening):
            connection.transport = transport
            connections.append(connection)
    sending = asyncio.create_task(_send_bytes_slowly(connections)) if kind == "slow" else None
    try:
        yield connections
    finally:
        if sending is not None:
            sending.cancel()
        for connection in connections:
            connection.transport.abort()


async def _send_bytes_slowly(connections: list[_OpenConnection]) -> None:
    headers = itertools.chain(b"GET /healthz HTTP/1.1\r\nX-Slow: ", itertools.repeat(ord("x")))
    for byte in headers:
        started = time.perf_counter()
        for connection in connections:
            if not connection.is_closed:
                connection.transport.write(bytes([byte]))
        await asyncio.sleep(max(0.0, _BYTE_INTERVAL_S - (time.perf_counter() - started)))
