"""The load generator: sends each request when it is due (open loop) or after a response (closed loop).

    async with LoadGenerator("http://localhost:8000") as generator:
        await generator.run_open_loop((second, request) for second in arrival_times(100, 30, seed=0))
    log = generator.log(seconds=30)

In an open loop the latency counts from when the request was due. A closed loop sends only after a
response and therefore hides the queue; it serves to measure the capacity.
"""

import asyncio
import itertools
import math
import random
import resource
import ssl
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

import uvloop

from load_tests.http_connection import Connection, Request, Response
from load_tests.request_log import DISCONNECTED, NO_RESPONSE, RequestLog, RequestRecord
from load_tests.service import LoadTestError

Result = TypeVar("Result")

_MAX_CONNECTIONS: Final = 4096
_OPEN_FILES: Final = 2 * _MAX_CONNECTIONS  # client and server may be one process
_MAX_IDLE_S: Final = 60.0
"""Below the server's keep-alive timeout, as in a load balancer: the server must not close a connection
while a request is on its way."""
_TIMER_RESOLUTION_S: Final = 0.0005
"""uvloop rounds timers to whole milliseconds."""
_MAX_DISCONNECT_DELAY_S: Final = 0.02
"""A client that disconnects waits up to this long; most responses of a loaded service take longer."""
_CAPACITY_WARM_UP: Final = 0.2
"""Share of the capacity measurement that does not count."""


class TooManyConnectionsError(OSError):
    """The limit on connections is reached because so many requests wait for a response."""


def arrival_times(rate: float, seconds: float, seed: int | None) -> Iterator[float]:
    """Yield the seconds at which requests are due, for `rate` requests/s.

    They are a Poisson process, the same for the same seed, or evenly spaced if the seed is None.
    """
    if seed is None:
        yield from (number / rate for number in range(math.ceil(rate * seconds)))
        return
    rng = random.Random(seed)
    second = rng.expovariate(rate)
    while second < seconds:
        yield second
        second += rng.expovariate(rate)


def run_async(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine on uvloop, with the limit on open files raised to what the connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft not in (resource.RLIM_INFINITY, hard) and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


class LoadGenerator:
    """Sends requests over keep-alive connections and records each; opens a connection if none is idle.

    Times are seconds since `started_at`, a value of time.perf_counter(). Generators with the same value
    share a clock. It is an async context manager, which closes its connections.
    """

    def __init__(
        self, url: str, started_at: float | None = None, max_connections: int = _MAX_CONNECTIONS
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise LoadTestError(f"{url} is not an http or https URL")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._address = parts.hostname, parts.port or (80 if self._tls is None else 443)
        self._max_connections = max_connections
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._rng = random.Random(0)
        self._cpu_s = time.process_time()
        self._started_at = time.perf_counter() if started_at is None else started_at
        self.records: list[RequestRecord] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in list(self._connections):
            connection.close()
        await asyncio.sleep(0)  # the loop closes their sockets in its next iteration

    @property
    def elapsed_s(self) -> float:
        """The time on the generator's clock."""
        return time.perf_counter() - self._started_at

    def log(self, seconds: float) -> RequestLog:
        """Return all requests so far; `seconds` is the time over which they were due."""
        return RequestLog.from_records(self.records, seconds, time.process_time() - self._cpu_s)

    async def run_open_loop(self, plan: Iterable[tuple[float, Request]], grace_s: float = 60.0) -> None:
        """Send each request of (due second, request) when it is due.

        After the last one, wait up to `grace_s` seconds for responses; requests without one are recorded
        with the error NO_RESPONSE.
        """
        try:
            async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as group:
                for due_s, request in plan:
                    await self._wait_until(due_s)
                    group.create_task(self.send(request, due_s))
                limit.reschedule(asyncio.get_running_loop().time() + grace_s)
        except TimeoutError:
            pass  # send() has recorded the canceled requests

    async def run_closed_loop(self, requests: Sequence[Request], connections: int, seconds: float) -> None:
        """Keep this many requests in progress, each sent after the response to the one before."""
        requests_in_turn = itertools.cycle(requests)

        async def send_one_by_one() -> None:
            # Without a response the loop ends; otherwise a server that is down would be tried in a busy loop.
            while (await self.send(next(requests_in_turn), self.elapsed_s)).status:
                if self.elapsed_s >= seconds:
                    break

        async with asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(send_one_by_one())

    async def send(self, request: Request, due_s: float) -> RequestRecord:
        """Send a request now, wait for its response, and record it."""
        late_s = self.elapsed_s - due_s
        response, error = Response(0), NO_RESPONSE  # if the task is canceled
        try:
            if request.disconnect_after is None:
                response, error = await self._exchange(request.content), ""
            else:
                await self._send_and_disconnect(request.content[: request.disconnect_after])
                error = DISCONNECTED
        except (OSError, ValueError) as failure:
            error = type(failure).__name__
        finally:
            latency_s = self.elapsed_s - due_s
            record = RequestRecord(
                due_s, late_s, request.kind, response.status, error, latency_s, *response[1:]
            )
            self.records.append(record)
        return record

    async def _wait_until(self, due_s: float) -> None:
        """Wait at least one iteration of the loop; a timer may end early, but a request must not."""
        pause_s = max(0.0, due_s - self.elapsed_s)
        while pause_s >= 0:
            await asyncio.sleep(pause_s + _TIMER_RESOLUTION_S * (pause_s > 0))
            pause_s = due_s - self.elapsed_s

    async def _exchange(self, content: bytes) -> Response:
        connection = await self._acquire_connection()
        try:
            response = await connection.send(content)
        except BaseException:
            connection.close()
            raise
        if connection.is_reusable:
            connection.idle_since = time.perf_counter()
            self._idle.append(connection)
        else:
            connection.close()
        return response

    async def _send_and_disconnect(self, content: bytes) -> None:
        connection = await self._acquire_connection()
        connection.send(content)
        await asyncio.sleep(self._rng.uniform(0, _MAX_DISCONNECT_DELAY_S))
        connection.close()

    async def _acquire_connection(self) -> Connection:
        oldest = time.perf_counter() - _MAX_IDLE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable and connection.idle_since > oldest:
                return connection
            connection.close()
        if len(self._connections) >= self._max_connections:
            raise TooManyConnectionsError(f"{self._max_connections} connections are in use")
        connection = Connection(self._connections)
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: connection, *self._address, ssl=self._tls)
        except BaseException:
            self._connections.discard(connection)
            raise
        return connection


def measure_capacity(url: str, requests: Sequence[Request], connections: int, seconds: float) -> float:
    """Return the requests/s that the service completes in a closed loop.

    Requests that succeed and bad images that get a 4xx count; the first fifth of the time does not. The time
    ends with the last response, because the service works at its capacity until then.
    Raises LoadTestError if a request fails or none is completed.
    """

    async def measure() -> RequestLog:
        async with LoadGenerator(url) as generator:
            await generator.run_closed_loop(requests, connections, seconds)
            return generator.log(generator.elapsed_s)

    log = run_async(measure())
    rate = log.rate(log.has_outcome("succeeded", "invalid"), _CAPACITY_WARM_UP * seconds)
    if not rate or log.has_outcome("failed").any():
        raise LoadTestError(
            f"cannot measure the capacity of {url}: responses by status or error: {log.count_statuses()}"
        )
    return rate
