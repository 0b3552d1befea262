"""The contract of the micro-batcher, lines 1 to 3: which item runs when. No test depends on timing."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from resnet_service.batching import Lane
from resnet_service.errors import DeadlineExceededError
from tests.support.batching import Device, batching, occupy, prepared, run_async, run_pending_tasks, submit

# 1. Work-conserving


@run_async
async def test_idle_device_takes_a_single_item_at_once() -> None:
    """An idle device does not wait for more items."""
    device = Device()
    async with batching(device) as batcher:
        await occupy(batcher, device, 7)
        assert device.batches == [[7]]


@run_async
async def test_items_that_arrive_during_a_batch_form_the_next_one() -> None:
    """Items that arrive while a batch runs are in one batch, and each gets its result."""
    device = Device()
    async with batching(device) as batcher:
        first = await occupy(batcher, device)
        rest = submit(batcher, 1, 2, 3)
        await run_pending_tasks()
        device.gate.set()
        results = await asyncio.gather(first, *rest)
        assert device.batches == [[0], [1, 2, 3]]
        assert [result.result for result in results] == [0, 10, 20, 30]
        assert [result.batch_size for result in results] == [1, 3, 3, 3]


@run_async
async def test_concurrent_items_share_a_batch() -> None:
    """Items that arrive at the same time share a batch even if the device is idle."""
    device = Device(open_gate=True)
    async with batching(device) as batcher:
        await asyncio.gather(*submit(batcher, 1, 2, 3))
        assert device.batches == [[1, 2, 3]]


@run_async
async def test_batches_do_not_exceed_max_batch() -> None:
    """With max_batch = 4, ten items run as batches of 4, 4 and 2."""
    device = Device()
    async with batching(device) as batcher:
        await occupy(batcher, device)
        tasks = submit(batcher, *range(1, 11))
        await run_pending_tasks()
        device.gate.set()
        await asyncio.gather(*tasks)
        assert device.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


@run_async
async def test_batches_do_not_exceed_the_largest_batch() -> None:
    """If the largest batch is 2, three items run as batches of 2 and 1; max_batch stays 4."""
    device = Device(open_gate=True)
    async with batching(device, largest_batch=2) as batcher:
        await asyncio.gather(*submit(batcher, 1, 2, 3))
        assert device.batches == [[1, 2], [3]]
        assert (batcher.largest_batch, batcher.max_batch) == (2, 4)


@run_async
async def test_a_busy_device_does_not_block_another() -> None:
    """Two devices share a queue, and the idle one takes what waits."""
    slow, fast = Device(), Device()
    async with batching(slow, fast) as batcher:
        await occupy(batcher, slow, 1)
        await occupy(batcher, fast, 2)
        waiting = submit(batcher, 3, 4)
        await run_pending_tasks()
        fast.gate.set()
        await asyncio.gather(*waiting)
        assert (slow.batches, fast.batches) == ([[1]], [[2], [3, 4]])


@run_async
async def test_max_wait_waits_for_a_full_batch() -> None:
    """With a long max_wait_s, a batch runs as soon as it is full and not before."""
    device = Device(open_gate=True)
    async with batching(device, max_wait_s=60.0) as batcher:
        early = submit(batcher, 1, 2, 3)
        await run_pending_tasks()
        assert device.batches == []
        await asyncio.gather(*early, *submit(batcher, 4))
        assert device.batches == [[1, 2, 3, 4]]


@run_async
async def test_max_wait_counts_from_the_oldest_item() -> None:
    """If an item has waited for max_wait_s while the device was busy, the next batch runs at once."""
    device = Device()
    async with batching(device, max_wait_s=0.02) as batcher:
        await occupy(batcher, device)
        (oldest,) = submit(batcher, 1)
        waited = asyncio.Event()
        asyncio.get_running_loop().call_later(0.03, waited.set)
        await waited.wait()
        newer = submit(batcher, 2)
        device.gate.set()
        await asyncio.gather(oldest, *newer)
        assert device.batches == [[0], [1, 2]]


@run_async
async def test_max_wait_runs_a_batch_that_is_not_full() -> None:
    """After max_wait_s, a batch that is not full runs."""
    device = Device(open_gate=True)
    async with batching(device, max_wait_s=0.01) as batcher:
        (result,) = await asyncio.gather(*submit(batcher, 1))
        assert device.batches == [[1]]
        assert result.started_at - result.enqueued_at >= 0.009


# 2. First in, first out; no polling


@run_async
async def test_items_run_in_order_of_arrival() -> None:
    """The order of arrival is kept within and across batches."""
    device = Device()
    async with batching(device, max_batch=2) as batcher:
        await occupy(batcher, device)
        tasks = submit(batcher, 5, 3, 9, 1)
        await run_pending_tasks()
        device.gate.set()
        await asyncio.gather(*tasks)
        assert device.batches == [[0], [5, 3], [9, 1]]


@run_async
async def test_idle_batcher_schedules_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle batcher has no timer, does not poll and has no busy loop."""
    device = Device(open_gate=True)
    async with batching(device, max_wait_s=1.0, max_batch=1) as batcher:
        await asyncio.gather(*submit(batcher, 1))
        await run_pending_tasks()
        loop = asyncio.get_running_loop()
        scheduled: list[str] = []
        for name in ("call_soon", "call_later", "call_at"):
            monkeypatch.setattr(loop, name, _recording(getattr(loop, name), name, scheduled))
        # Each sleep(0) of this loop schedules one callback.
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(scheduled) <= 5
        assert "call_later" not in scheduled
        assert "call_at" not in scheduled


def _recording(function: Callable[..., Any], name: str, record: list[str]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        record.append(name)
        return function(*args, **kwargs)

    return call


# 3. Cancelled and expired items are dropped


@run_async
async def test_cancelled_item_is_not_run() -> None:
    """An item whose caller is cancelled while it waits is not in the batch; its neighbors are."""
    device = Device()
    async with batching(device) as batcher:
        await occupy(batcher, device)
        before, cancelled, after = submit(batcher, 1, 2, 3)
        await run_pending_tasks()
        cancelled.cancel()
        # The device becomes idle in the iteration of the loop in which the caller is cancelled.
        device.gate.set()
        assert [result.result for result in await asyncio.gather(before, after)] == [10, 30]
        assert device.batches == [[0], [1, 3]]


@run_async
async def test_cancelled_item_frees_its_slot() -> None:
    """The slot of a cancelled item can be used at once."""
    device = Device()
    async with batching(device, max_queue=2) as batcher:
        await occupy(batcher, device)
        cancelled, _ = submit(batcher, 1, 2)
        await run_pending_tasks()
        cancelled.cancel()
        await run_pending_tasks()
        (late,) = submit(batcher, 3)
        await run_pending_tasks()
        assert not late.done()
        assert batcher.depth(Lane.INTERACTIVE) == 2


@run_async
async def test_item_cancelled_during_its_batch_does_not_affect_the_others() -> None:
    """The result of the cancelled item is discarded; the other items get theirs."""
    device = Device()
    async with batching(device) as batcher:
        await occupy(batcher, device)
        first, cancelled = submit(batcher, 1, 2)
        await run_pending_tasks()
        device.gate.set()
        await device.started.acquire()
        cancelled.cancel()
        assert (await first).result == 10


@run_async
async def test_item_past_its_deadline_fails_and_is_not_run() -> None:
    """The caller gets DeadlineExceededError while the device is still busy."""
    device = Device()
    async with batching(device) as batcher:
        first = await occupy(batcher, device)
        deadline = asyncio.get_running_loop().time() + 0.01
        with pytest.raises(DeadlineExceededError):
            await batcher.submit(1, deadline)
        assert not first.done()
        device.gate.set()
        await asyncio.gather(*submit(batcher, 2))
        assert device.batches == [[0], [2]]


@run_async
async def test_limit_shortens_the_deadline_of_a_reservation_and_never_extends_it() -> None:
    """It counts from the admission, and the time of `extend` does not count."""
    now = asyncio.get_running_loop().time()
    async with batching(Device()) as batcher:
        with batcher.reserve(now + 10) as reservation:
            reservation.limit(20)
            assert reservation.deadline == now + 10
            reservation.extend(3)
            reservation.limit(5)
            assert reservation.deadline == pytest.approx(now + 8, abs=0.5)
            reservation.extend(1)
            assert reservation.deadline == pytest.approx(now + 9, abs=0.5)
        with batcher.reserve() as reservation:
            reservation.limit(5)
            assert reservation.deadline == pytest.approx(now + 5, abs=0.5)
            reservation.limit(0.001)
            with pytest.raises(DeadlineExceededError):
                await reservation.run(prepared(1))
