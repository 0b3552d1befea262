"""An HTTP/1.1 client that sends each request when it is due, whatever became of the others.

It shares the machine with the service, so it does as little as it can: requests are bytes made beforehand,
and of an answer only the status, the length and a few headers are read.
"""

import asyncio
import itertools
import math
import random
import re
import resource
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Self, TypeVar, cast
from urllib.parse import urlsplit

import uvloop

from load_tests.request_log import HUNG_UP, UNANSWERED, Record, Row

Result = TypeVar("Result")

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RETRY_AFTER: Final = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE)
_CLOSE: Final = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_BOUNDARY: Final = "a-boundary-that-no-image-contains"

_CONNECTIONS: Final = 4096
_FILES: Final = 2 * _CONNECTIONS  # where client and server are one process
_LONGEST_IDLE_S: Final = 60.0
"""As a load balancer does: before the server closes the connection while a request is on its way."""
_ROUNDING_S: Final = 0.0005
"""The loop's timers are of whole milliseconds."""
_LONGEST_PATIENCE_S: Final = 0.05
"""A client that hangs up waits up to this long: while the image is read, decoded, queued or run."""


class TooManyConnections(OSError):
    """So many requests wait for an answer that no further connection is opened."""


class Request(NamedTuple):
    """A request ready to be sent, and what to call it.

    With `hang_up_after` the client sends that many bytes of it, and soon after closes the connection.
    """

    kind: str
    content: bytes
    hang_up_after: int | None = None


class Answer(NamedTuple):
    """What counts of an answer: its status and the seconds of its Retry-After, nan where it has none."""

    status: int
    retry_after_s: float


def get(url: str, path: str) -> Request:
    """Return a GET of a path; it is its kind."""
    return Request(path, f"GET {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n\r\n".encode())


def post(
    url: str, body: bytes, kind: str, path: str = "/predict", content_type: str = "image/jpeg"
) -> Request:
    """Return a POST of a body: to /predict, one image."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return Request(kind, head.encode() + body)


def post_batch(url: str, images: Sequence[bytes], kind: str) -> Request:
    """Return a POST of several images to /predict/batch, as a form."""
    part = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'.encode()
    body = b"".join(part + image + b"\r\n" for image in images) + f"--{_BOUNDARY}--\r\n".encode()
    return post(url, body, kind, "/predict/batch", f"multipart/form-data; boundary={_BOUNDARY}")


def arrivals(rate: float, seconds: float, seed: int | None) -> Iterator[float]:
    """Yield the seconds at which requests are due: a Poisson process, or evenly spaced without a seed.

    `rate` is in requests/s.
    """
    if seed is None:
        yield from (number / rate for number in range(math.ceil(rate * seconds)))
        return
    chance = random.Random(seed)
    second = chance.expovariate(rate)
    while second < seconds:
        yield second
        second += chance.expovariate(rate)


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run it on a light event loop, in a process that may have as many connections as it takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft not in (resource.RLIM_INFINITY, hard) and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


class Client:
    """Sends requests over keep-alive connections, a new one where none is idle, and records each.

    Times are seconds since `began`, a reading of the performance counter; clients with the same one share a
    clock.
    """

    def __init__(self, url: str, began: float | None = None, most_connections: int = _CONNECTIONS) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"speaks http only, not {url}")
        self._address = parts.hostname, parts.port or 80
        self._most = most_connections
        self._connections: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._chance = random.Random(0)
        self._cpu_s = time.process_time()
        self.began = time.perf_counter() if began is None else began
        self.rows: list[Row] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in list(self._connections):
            connection.close()
        await asyncio.sleep(0)  # the loop closes their sockets in its next turn

    @property
    def now_s(self) -> float:
        """The time on the client's clock."""
        return time.perf_counter() - self.began

    def record(self, seconds: float) -> Record:
        """Return every request so far; `seconds` is the time over which they were due."""
        return Record.of(self.rows, seconds, time.process_time() - self._cpu_s)

    async def follow(self, plan: Iterable[tuple[float, Request]], patience_s: float = 60.0) -> None:
        """Send each request when it is due, then wait for the last answers, up to `patience_s` seconds."""
        try:
            async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as group:
                for due_s, request in plan:
                    await self._until(due_s)
                    group.create_task(self.ask(request, due_s))
                limit.reschedule(asyncio.get_running_loop().time() + patience_s)
        except TimeoutError:
            pass  # those without an answer have recorded that

    async def saturate(self, requests: Sequence[Request], connections: int, seconds: float) -> None:
        """Keep so many requests at work: the rate of answers is what the service can do."""
        turns = itertools.cycle(requests)

        async def one_after_another() -> None:
            while (due_s := self.now_s) < seconds:
                if not (await self.ask(next(turns), due_s)).status:
                    break  # nobody is there

        async with asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(one_after_another())

    async def ask(self, request: Request, due_s: float) -> Row:
        """Send a request now, wait for its answer, and record it."""
        late_s = self.now_s - due_s
        answer, error = Answer(0, math.nan), UNANSWERED  # unless it is overwritten, it was given up
        try:
            if request.hang_up_after is None:
                answer, error = await self._exchange(request.content), ""
            else:
                await self._hang_up(request.content[: request.hang_up_after])
                error = HUNG_UP
        except (OSError, ValueError) as failed:
            error = type(failed).__name__
        finally:
            row = Row(due_s, late_s, request.kind, answer.status, error, self.now_s - due_s, *answer[1:])
            self.rows.append(row)
        return row

    async def _until(self, due_s: float) -> None:
        """Wait, for a turn of the loop at least: its timers may end early, and requests must not."""
        pause_s = max(0.0, due_s - self.now_s)
        while pause_s >= 0:
            await asyncio.sleep(pause_s + _ROUNDING_S * (pause_s > 0))
            pause_s = due_s - self.now_s

    async def _exchange(self, content: bytes) -> Answer:
        connection = await self._connection()
        try:
            answer = await connection.send(content)
        except BaseException:
            connection.close()
            raise
        if connection.reusable:
            connection.idle_since = time.perf_counter()
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    async def _hang_up(self, content: bytes) -> None:
        connection = await self._connection()
        connection.send(content)
        await asyncio.sleep(self._chance.uniform(0, _LONGEST_PATIENCE_S))
        connection.close()

    async def _connection(self) -> "_Connection":
        oldest = time.perf_counter() - _LONGEST_IDLE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and connection.idle_since > oldest:
                return connection
            connection.close()
        if len(self._connections) >= self._most:
            raise TooManyConnections(f"{self._most} connections are in use")
        connection = _Connection(self._connections)
        try:
            await asyncio.get_running_loop().create_connection(lambda: connection, *self._address)
        except BaseException:
            self._connections.discard(connection)
            raise
        return connection


class _Connection(asyncio.Protocol):
    """One connection, with one request at a time; is in `connections` until it is closed."""

    def __init__(self, connections: "set[_Connection]") -> None:
        connections.add(self)
        self.reusable = True
        self.idle_since = 0.0
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answer] | None = None
        self._received = bytearray()
        self._answer: Answer | None = None
        self._answer_bytes = 0

    def send(self, content: bytes) -> asyncio.Future[Answer]:
        """Send a request; the future is of its answer."""
        self._waiting = asyncio.get_running_loop().create_future()
        if self._transport is None or self._transport.is_closing():
            self._waiting.set_exception(ConnectionResetError("closed by the server"))
        else:
            self._transport.write(content)
        return self._waiting

    def close(self) -> None:
        """Close at once, whatever is still to be sent or received."""
        self.reusable = False
        if self._waiting is not None:
            self._waiting.cancel()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one but by name

    def data_received(self, data: bytes) -> None:
        """Read on, and hand the answer over once it is whole."""
        self._received += data
        if self._answer is None:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            self._read_head(bytes(self._received[:end]), end + 4)
        if len(self._received) >= self._answer_bytes:
            answer, self._answer = self._answer, None
            self._received.clear()
            if self._waiting is not None and answer is not None and not self._waiting.done():
                self._waiting.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell who waits."""
        self.reusable = False
        self._connections.discard(self)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error or ConnectionResetError("closed before the answer"))

    def _read_head(self, head: bytes, head_bytes: int) -> None:
        retry_after, length = _RETRY_AFTER.search(head), _LENGTH.search(head)
        self._answer = Answer(int(head[9:12]), float(retry_after[1]) if retry_after else math.nan)
        self._answer_bytes = head_bytes + (int(length[1]) if length else 0)
        # Without a length the body ends with the connection, and is not waited for.
        self.reusable = length is not None and not _CLOSE.search(head)
