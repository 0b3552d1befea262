"""The contract of the micro-batcher, lines 5 and 6: rejection and `close`. No test depends on timing."""

import asyncio

import pytest

from resnet_service.batching import MicroBatcher
from resnet_service.errors import OverloadedError, ServiceUnavailable
from tests.support.batching import (
    Clock,
    Device,
    batching,
    occupy,
    prepared,
    run_async,
    run_for,
    run_pending_tasks,
    submit,
)

# 5. Rejection


@run_async
async def test_full_queue_rejects_at_once() -> None:
    """One item above max_queue is rejected without a turn of the loop; running items do not count."""
    device = Device()
    async with batching(device, max_queue=2) as batcher:
        await occupy(batcher, device)
        submit(batcher, 1, 2)
        await run_pending_tasks()
        with pytest.raises(OverloadedError) as caught:
            batcher.reserve()
        assert caught.value.reason == "queue_full"


@run_async
async def test_reservations_count_as_queued() -> None:
    """A reservation takes a slot until its item runs or its block ends."""
    device = Device(open_gate=True)
    async with batching(device, max_queue=1) as batcher:
        with batcher.reserve(), pytest.raises(OverloadedError):
            batcher.reserve()
        with batcher.reserve() as reservation:
            assert (await reservation.run(prepared(1))).result == 10


@run_async
async def test_further_items_of_a_reservation_take_their_own_slots() -> None:
    """The first item uses the reserved slot; a second one at the same time needs room in the queue."""
    device = Device()
    async with batching(device, max_queue=1, max_batch=1) as batcher:
        running = await occupy(batcher, device)
        with batcher.reserve() as reservation:
            first = asyncio.create_task(reservation.run(prepared(1)))
            await run_pending_tasks()
            with pytest.raises(OverloadedError):
                await reservation.run(prepared(2))
            device.gate.set()
            assert [(await running).result, (await first).result] == [0, 10]
            assert (await reservation.run(prepared(3))).result == 30


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("resnet_service.batching.batcher.time.perf_counter", lambda: clock.now)
    return clock


@run_async
async def test_retry_after_follows_the_measured_rate(clock: Clock) -> None:
    """With batches of 1 s, the retry time is the rest of the running batch, two full batches and its own."""
    device = Device()
    async with batching(device, max_batch=2, max_queue=4) as batcher:
        # Two batches of 1 s each, although their sizes differ.
        await run_for(1.0, clock, batcher, device, 1)
        await run_for(1.0, clock, batcher, device, 2, 3)
        assert batcher.estimate_wait(0) == pytest.approx(1.0)
        await occupy(batcher, device)
        clock.now += 0.25
        submit(batcher, 4, 5, 6, 7)
        await run_pending_tasks()
        with pytest.raises(OverloadedError) as caught:
            await batcher.submit(8)
        # The rest of the running batch, two full batches, and its own.
        assert caught.value.retry_after_s == pytest.approx(0.75 + 2 + 1)


@run_async
async def test_deadline_that_cannot_be_met_is_rejected_at_once(clock: Clock) -> None:
    """If batches take 1 s, an item with less time is rejected; one with enough time is not."""
    device = Device()
    async with batching(device) as batcher:
        await run_for(1.0, clock, batcher, device, 1)
        running = await occupy(batcher, device, 2)
        now = asyncio.get_running_loop().time()
        with pytest.raises(OverloadedError) as caught:
            await batcher.submit(3, now + 0.5)
        assert caught.value.reason == "deadline"
        accepted = asyncio.create_task(batcher.submit(4, now + 5))
        await run_pending_tasks()
        device.gate.set()
        assert [result.result for result in await asyncio.gather(running, accepted)] == [20, 40]


@run_async
async def test_idle_device_accepts_any_deadline(clock: Clock) -> None:
    """After one very slow batch, an idle device still accepts items, which corrects the estimate."""
    device = Device()
    async with batching(device) as batcher:
        await run_for(100.0, clock, batcher, device, 1)
        device.gate.set()
        deadline = asyncio.get_running_loop().time() + 10
        assert (await batcher.submit(2, deadline)).result == 20


# 6. Close


@run_async
async def test_unused_reservation_gives_its_slot_back_after_a_second(clock: Clock) -> None:
    """Slow uploads cannot fill the queue: after a second, their slots are free and they need another one."""
    device = Device(open_gate=True)
    async with batching(device, max_queue=1) as batcher:
        with batcher.reserve() as slow:
            clock.now = 0.9
            with pytest.raises(OverloadedError):
                batcher.reserve()
            clock.now = 1.1
            with batcher.reserve() as other:
                with pytest.raises(OverloadedError):
                    await slow.run(prepared(1))
                assert (await other.run(prepared(2))).result == 20
            assert (await slow.run(prepared(3))).result == 30


@run_async
async def test_close_finishes_accepted_items_and_rejects_new_ones() -> None:
    """Queued items and earlier reservations are finished; new items get ServiceUnavailable."""
    device = Device()
    async with batching(device) as batcher:
        with batcher.reserve() as reservation:
            first = await occupy(batcher, device)
            waiting = submit(batcher, *range(1, 7))
            await run_pending_tasks()
            closing = asyncio.create_task(batcher.close(10.0))
            await run_pending_tasks()
            with pytest.raises(ServiceUnavailable):
                await batcher.submit(8)
            device.gate.set()
            results = await asyncio.gather(first, *waiting)
            assert [result.result for result in results] == [0, 10, 20, 30, 40, 50, 60]
            assert not closing.done()
            assert (await reservation.run(prepared(7))).result == 70
        await closing


@run_async
async def test_close_returns_within_its_timeout() -> None:
    """A device that hangs does not block `close`; its callers get the shutdown error."""
    device = Device()
    async with batching(device) as batcher:
        running = await occupy(batcher, device)
        (waiting,) = submit(batcher, 1)
        with batcher.reserve() as reservation:
            await batcher.close(0.01)
            for task in (running, waiting):
                with pytest.raises(ServiceUnavailable):
                    await task
            with pytest.raises(ServiceUnavailable):
                await reservation.run(prepared(2))


@run_async
async def test_items_before_start_are_rejected() -> None:
    """A batcher that is not started rejects items instead of queueing them."""
    batcher: MicroBatcher[int, int] = MicroBatcher([Device()], max_batch=1, max_queue=1)
    with pytest.raises(ServiceUnavailable):
        await batcher.submit(1)
    await batcher.close(1.0)
