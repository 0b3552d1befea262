"""Helpers for tests of the micro-batcher: devices whose batches wait at a gate, and a stopped clock."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any

from resnet_service.batching import BatchResult, Lane, MicroBatcher


def run_async(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on its own event loop, with a timeout of 20 s."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 20))

    return run


class Device:
    """A runner whose batches wait until `gate` is set. Items are integers; a result is ten times its item."""

    def __init__(self, open_gate: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.started = asyncio.Semaphore(0)
        self.gate = asyncio.Event()
        if open_gate:
            self.gate.set()

    async def __call__(self, items: list[int]) -> Sequence[int]:
        self.batches.append(items)
        self.started.release()
        await self.gate.wait()
        return [10 * item for item in items]


@asynccontextmanager
async def batching(*devices: Any, **options: Any) -> AsyncIterator[MicroBatcher[int, int]]:
    """Yield a started batcher for these devices; max_batch is 4 unless the options set it."""
    batcher: MicroBatcher[int, int] = MicroBatcher(devices, **{"max_batch": 4, "max_queue": 100, **options})
    batcher.start()
    try:
        yield batcher
    finally:
        for device in devices:
            if isinstance(device, Device):
                device.gate.set()
        await batcher.close(1.0)


def submit(
    batcher: MicroBatcher[int, int], *items: int, lane: Lane = Lane.INTERACTIVE
) -> list[asyncio.Task[BatchResult[int]]]:
    """Submit each item in its own task."""
    return [asyncio.create_task(batcher.submit(item, lane=lane)) for item in items]


def prepared(item: int) -> Callable[[], Awaitable[int]]:
    """Return the argument of `Reservation.run` for an item that needs no preparation."""

    async def prepare() -> int:
        return item

    return prepare


async def run_pending_tasks() -> None:
    """Run all tasks until each waits for something that only the test can do."""
    for _ in range(20):
        await asyncio.sleep(0)


async def occupy(
    batcher: MicroBatcher[int, int], device: Device, item: int = 0
) -> asyncio.Task[BatchResult[int]]:
    """Submit one item and wait until the device runs it; it stays there until the gate is set."""
    (task,) = submit(batcher, item)
    await device.started.acquire()
    return task


class Clock:
    """Replaces the performance counter of the batcher; tests set the time."""

    now = 0.0


async def run_for(
    seconds: float, clock: Clock, batcher: MicroBatcher[int, int], device: Device, *items: int
) -> None:
    """Run one batch of these items that takes `seconds` on the clock; the gate is closed again afterwards."""
    tasks = submit(batcher, *items)
    await device.started.acquire()
    clock.now += seconds
    device.gate.set()
    await asyncio.gather(*tasks)
    device.gate.clear()
