"""Run blocking calls in threads and report how long the oldest call has been running."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Event, get_ident
from typing import Any, Final, TypeVar
from weakref import WeakSet

from resnet_service.batching import BULK_INTERVAL, Lane
from resnet_service.errors import ServiceUnavailable

Value = TypeVar("Value")

_pools: Final[WeakSet["WorkerPool"]] = WeakSet()


def has_running_calls() -> bool:
    """Whether any pool runs a call: Python waits for its thread at the end of the process, maybe forever."""
    return any(pool.oldest_call_age_s > 0 for pool in _pools)


class WorkerPool:
    """A fixed number of threads that run blocking calls for an event loop, until `close`.

    Adds to `ThreadPoolExecutor` what a watchdog needs, the age of the oldest call, and the busy time.

        pool = WorkerPool(4, "decode")
        crop = await pool.run(decode_jpeg, data, preprocessing)
    """

    def __init__(
        self,
        count: int,
        name: str,
        on_busy: Callable[[float], None] = lambda _: None,
        *,
        bulk_calls: int | None = None,
    ) -> None:
        """Create a pool of `count` threads, which start as they are needed, or with `start`.

        `on_busy` is called in the thread after each call, with its duration in seconds. An interactive call
        waits for at most `bulk_calls` bulk calls, those that run included: by default two for each thread.
        With fewer, threads wait for the event loop: 16 threads made 4,000 instead of 6,000 calls/s of 2 ms.
        """
        self.count = count
        self._executor = ThreadPoolExecutor(count, name)
        self._on_busy = on_busy
        self._started_at: dict[int, float] = {}  # by thread
        self._calls: set[Future[Any]] = set()
        self._bulk_calls = 0
        self._min_bulk_calls = 2 * count if bulk_calls is None else bulk_calls
        self._bulk_waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._closed = False
        _pools.add(self)

    def start(self) -> None:
        """Start all threads, before the first call: later, the system could allow no more.

        Raises RuntimeError if it allows too few.
        """
        all_run = Event()
        try:
            for _ in range(self.count):  # no thread is idle: each call starts one
                self._executor.submit(all_run.wait)
        finally:
            all_run.set()

    @property
    def oldest_call_age_s(self) -> float:
        """Seconds since the start of the oldest running call; 0 if no call is running."""
        started_at = tuple(self._started_at.values())
        return time.perf_counter() - min(started_at) if started_at else 0.0

    @property
    def waiting(self) -> int:
        """Number of calls that wait for a thread."""
        return max(0, len(self._calls) - len(self._started_at)) + len(self._bulk_waiting)

    async def run(
        self, function: Callable[..., Value], *arguments: object, lane: Lane = Lane.INTERACTIVE
    ) -> Value:
        """Call `function` in the next idle thread and return its result.

        Bulk calls wait while others do: see `_max_bulk_calls`. Cancelling the caller drops a waiting call; a
        running call continues. Raises what `function` raises, and ServiceUnavailable if the pool is closed
        before the call starts.
        """
        is_bulk = lane is Lane.BULK
        if is_bulk:
            await self._acquire_bulk()
        try:
            return await self._run(function, arguments)
        finally:
            self._bulk_calls -= is_bulk
            if self._bulk_waiting:
                self._start_bulk_calls()

    @property
    def _max_bulk_calls(self) -> int:
        """Bulk calls that may be in the executor, which runs its calls in order of arrival.

        One more for each BULK_INTERVAL - 1 interactive calls, so that bulk calls get their share of threads.
        """
        interactive_calls = len(self._calls) - self._bulk_calls
        return self._min_bulk_calls + max(0, interactive_calls) // (BULK_INTERVAL - 1)

    async def _acquire_bulk(self) -> None:
        """Wait until a bulk call may start, in order of arrival, and count it."""
        if not self._bulk_waiting and self._bulk_calls < self._max_bulk_calls:
            self._bulk_calls += 1
            return
        permit: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._bulk_waiting[permit] = None
        try:
            await permit
        except asyncio.CancelledError:
            if permit.done() and not permit.cancelled():
                self._bulk_calls -= 1
                self._start_bulk_calls()
            raise
        finally:
            self._bulk_waiting.pop(permit, None)

    def _start_bulk_calls(self) -> None:
        while self._bulk_waiting and (self._closed or self._bulk_calls < self._max_bulk_calls):
            permit, _ = self._bulk_waiting.popitem(last=False)
            if not permit.done():
                permit.set_result(None)
                self._bulk_calls += 1

    async def _run(self, function: Callable[..., Value], arguments: tuple[object, ...]) -> Value:
        if self._closed:
            raise _shutdown_error()
        call = self._executor.submit(self._call, function, arguments)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        try:
            return await asyncio.wrap_future(call)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():  # `close` dropped the call
                raise _shutdown_error() from None
            raise
        finally:
            del call  # its error refers to this frame, which refers to the image

    async def close(self, timeout_s: float) -> None:
        """Drop the waiting calls and wait up to `timeout_s` seconds for the running ones."""
        self._closed = True
        self._start_bulk_calls()  # each raises the error of a closed pool
        self._executor.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(wait, tuple(self._calls), timeout_s)

    def _call(self, function: Callable[..., Value], arguments: tuple[object, ...]) -> Value:
        thread = get_ident()
        started_at = self._started_at[thread] = time.perf_counter()
        try:
            return function(*arguments)
        except (KeyboardInterrupt, SystemExit, StopIteration) as error:
            # In the event loop, the first two would end the process, and a future cannot hold the third.
            raise RuntimeError(f"{error!r} in a thread") from error
        finally:
            del self._started_at[thread]
            self._on_busy(time.perf_counter() - started_at)


def _shutdown_error() -> ServiceUnavailable:
    return ServiceUnavailable("the service shut down before the request was finished")
