"""Run blocking calls in threads, and know what they are at."""

import asyncio
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any, TypeVar

from service.errors import NotReady

Value = TypeVar("Value")


class Threads:
    """A fixed number of threads that an event loop hands its blocking calls to."""

    def __init__(self, count: int, name: str) -> None:
        self.count = count
        self._executor = futures.ThreadPoolExecutor(count, name)
        self._calls: set[futures.Future[Any]] = set()
        self._since: dict[object, float] = {}

    @property
    def running_for_s(self) -> float:
        """How long the oldest call has been running, in seconds; 0 when none is: the threads' heartbeat."""
        since = tuple(self._since.values())
        return time.perf_counter() - min(since) if since else 0.0

    @property
    def running(self) -> int:
        """How many calls are running."""
        return len(self._since)

    @property
    def waiting(self) -> int:
        """How many calls wait for a thread."""
        return max(0, len(self._calls) - len(self._since))

    async def run(self, function: Callable[..., Value], *arguments: object) -> Value:
        """Call `function` in a thread as soon as one is free, and await its result.

        A caller that is cancelled stops waiting; a call that has begun goes on. Raises NotReady where `close`
        came before a thread did.
        """
        call = self._executor.submit(self._timed, function, *arguments)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        try:
            return await asyncio.wrap_future(call)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the caller has gone; else `close` has cancelled what had not begun
            raise NotReady("the service shut down before the answer was ready") from error

    async def close(self, timeout_s: float) -> None:
        """Drop what has not begun and wait for the rest: a thread cannot be interrupted."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(futures.wait, tuple(self._calls), timeout_s)

    def _timed(self, function: Callable[..., Value], *arguments: object) -> Value:
        key = object()
        self._since[key] = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            del self._since[key]
