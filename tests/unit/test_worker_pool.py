"""Threads for blocking calls: which calls run first, and what happens to those that wait."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from resnet_service.batching import Lane
from resnet_service.errors import ServiceUnavailable
from resnet_service.inference.worker_pool import WorkerPool
from tests.support.batching import run_async, run_pending_tasks


class Calls:
    """Calls of a pool with one thread, which is busy until the block of `held` ends."""

    def __init__(self) -> None:
        self.pool = WorkerPool(1, "test")
        self.order: list[str] = []
        self._gate = threading.Event()

    def start(self, name: str, lane: Lane = Lane.INTERACTIVE) -> asyncio.Task[None]:
        return asyncio.create_task(self.pool.run(self.order.append, name, lane=lane))

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        first = asyncio.create_task(self.pool.run(self._gate.wait, 20))
        await run_pending_tasks()
        try:
            yield
            await run_pending_tasks()
        finally:
            self._gate.set()
        assert await first


@run_async
async def test_interactive_call_runs_before_bulk_calls_that_came_earlier() -> None:
    """At most two bulk calls, one more than the threads, are ahead of an interactive call."""
    calls = Calls()
    async with calls.held():
        bulk = [calls.start(f"bulk {number}", Lane.BULK) for number in range(5)]
        await run_pending_tasks()
        interactive = calls.start("interactive")
        await run_pending_tasks()
        assert calls.pool.waiting == 6
    await asyncio.gather(*bulk, interactive)
    assert calls.order == ["bulk 0", "bulk 1", "interactive", "bulk 2", "bulk 3", "bulk 4"]
    await calls.pool.close(1)


@run_async
async def test_bulk_calls_get_their_share_of_the_threads() -> None:
    """While interactive and bulk calls always wait for the only thread, at least one of eight is bulk."""
    pool = WorkerPool(1, "test")
    order: list[str] = []
    permits, done = threading.Semaphore(0), asyncio.Semaphore(0)
    loop = asyncio.get_running_loop()

    def call(name: str) -> None:
        assert permits.acquire(timeout=20)
        order.append(name)

    async def repeat(name: str, lane: Lane) -> None:
        while True:
            await pool.run(call, name, lane=lane)
            done.release()

    clients = [loop.create_task(repeat("interactive", Lane.INTERACTIVE)) for _ in range(35)]
    clients += [loop.create_task(repeat("bulk", Lane.BULK)) for _ in range(20)]
    for _ in range(300):
        await run_pending_tasks()
        permits.release()
        await done.acquire()
    assert 1 / 8 <= order[35:].count("bulk") / len(order[35:]) < 1 / 4
    for client in clients:
        client.cancel()
    permits.release(len(clients))
    await pool.close(1)


@run_async
async def test_bulk_call_that_is_cancelled_does_not_run() -> None:
    """The others run in order."""
    calls = Calls()
    async with calls.held():
        bulk = [calls.start(f"bulk {number}", Lane.BULK) for number in range(6)]
        await run_pending_tasks()
        for number in (1, 3):  # one that is in the executor, one that is not
            bulk[number].cancel()
    await asyncio.gather(*bulk, return_exceptions=True)
    assert calls.order == ["bulk 0", "bulk 2", "bulk 4", "bulk 5"]
    await calls.pool.close(1)


@run_async
async def test_closing_the_pool_fails_the_bulk_calls_that_wait() -> None:
    """Each caller gets ServiceUnavailable, and none of the calls runs."""
    calls = Calls()
    async with calls.held():
        bulk = [calls.start(f"bulk {number}", Lane.BULK) for number in range(5)]
        await run_pending_tasks()
        await calls.pool.close(0)
        for task in bulk:
            with pytest.raises(ServiceUnavailable):
                await task
    assert calls.order == []
