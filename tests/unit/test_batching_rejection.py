"""The contract of the micro-batcher, lines 5 and 6: rejection and `close`. No test depends on timing."""

import asyncio
from contextlib import ExitStack

import pytest

from resnet_service.batching import MicroBatcher
from resnet_service.errors import DeadlineExceededError, OverloadedError, ServiceUnavailable
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
async def test_further_items_of_a_reservation_are_not_rejected() -> None:
    """The first item uses the reserved slot; a second one at the same time is queued, however full it is."""
    device = Device()
    async with batching(device, max_queue=1, max_batch=1) as batcher:
        running = await occupy(batcher, device)
        with batcher.reserve() as reservation:
            first = asyncio.create_task(reservation.run(prepared(1)))
            await run_pending_tasks()
            second = asyncio.create_task(reservation.run(prepared(2)))
            await run_pending_tasks()
            with pytest.raises(OverloadedError):
                batcher.reserve()
            device.gate.set()
            assert [(await task).result for task in (running, first, second)] == [0, 10, 20]
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
        assert batcher.estimate_wait() == pytest.approx(1.0)
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
async def test_long_estimated_wait_is_rejected_at_once(clock: Clock) -> None:
    """If batches take 1 s and the limit is 3 s, the fourth item is rejected, with the wait as retry time."""
    device = Device()
    async with batching(device, max_batch=1, max_queue_wait_s=3) as batcher:
        await run_for(1.0, clock, batcher, device, 1)
        await occupy(batcher, device)
        submit(batcher, 2, 3)
        await run_pending_tasks()
        with pytest.raises(OverloadedError, match=r"estimated wait of 4\.0 s exceeds 3 s") as caught:
            batcher.reserve()
        assert caught.value.reason == "queue_full"
        assert caught.value.retry_after_s == pytest.approx(4)


# 5. Concurrency limit


@run_async
async def test_suspended_reservation_gives_its_slot_and_its_permit_to_another() -> None:
    """Slow uploads neither fill the queue nor reach the concurrency limit; they are admitted again."""
    device = Device(open_gate=True)
    async with batching(device, max_queue=1, max_concurrency=1) as batcher:
        with batcher.reserve() as slow:
            await slow.start()
            with pytest.raises(OverloadedError):
                batcher.reserve()
            slow.suspend()
            with batcher.reserve() as other:
                await other.start()
                with pytest.raises(OverloadedError):
                    await slow.start()
                assert (await other.run(prepared(2))).result == 20
            await slow.start()
            assert (await slow.run(prepared(3))).result == 30


@run_async
async def test_reservations_start_in_order_of_arrival() -> None:
    """Two reservations are started at a time; one that is cancelled while it waits is skipped."""
    started: list[int] = []
    finish = [asyncio.Event() for _ in range(6)]
    async with batching(Device(), max_concurrency=2) as batcher:

        async def request(number: int) -> None:
            with batcher.reserve() as reservation:
                await reservation.start()
                started.append(number)
                await finish[number].wait()

        requests = [asyncio.create_task(request(number)) for number in range(6)]
        await run_pending_tasks()
        assert started == [0, 1]
        assert batcher.waiting == 4
        requests[3].cancel()
        for number in (1, 0, 4, 2, 5):
            finish[number].set()
            await run_pending_tasks()
        assert started == [0, 1, 2, 4, 5]
        await asyncio.gather(*requests, return_exceptions=True)
        with batcher.reserve() as first, batcher.reserve() as second:  # no permit is lost
            await first.start()
            await second.start()


@run_async
async def test_request_cancelled_as_it_gets_a_permit_passes_it_on() -> None:
    """The permit is not lost, although the request no longer waits for it."""
    async with batching(Device(), max_concurrency=1) as batcher:
        with batcher.reserve() as first, batcher.reserve() as second, batcher.reserve() as third:
            await first.start()
            waiting = [asyncio.create_task(reservation.start()) for reservation in (second, third)]
            await run_pending_tasks()
            first.suspend()
            waiting[0].cancel()
            await asyncio.gather(waiting[1])
            assert waiting[0].cancelled()


@run_async
async def test_wait_for_a_permit_is_estimated_from_their_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a request takes 2 s, three waiting requests take 6 s; a request with less time is rejected."""
    clock = Clock()
    monkeypatch.setattr("resnet_service.batching.reservation.time.perf_counter", lambda: clock.now)
    async with batching(Device(), max_concurrency=1, max_queue_wait_s=5) as batcher:
        with ExitStack() as stack:
            reservations = [stack.enter_context(batcher.reserve()) for _ in range(6)]
            await reservations[0].start()
            waiting = [asyncio.create_task(reservation.start()) for reservation in reservations[1:]]
            await run_pending_tasks()
            for reservation in reservations[:3]:
                clock.now += 2
                reservation.suspend()
                await run_pending_tasks()
            waiting += [asyncio.create_task(reservations[0].start())]
            await run_pending_tasks()
            with pytest.raises(OverloadedError, match=r"6\.0 s"):
                batcher.reserve()
            for reservation in (*reservations[3:], reservations[0]):
                reservation.suspend()
                await run_pending_tasks()
            await asyncio.gather(*waiting)


@run_async
async def test_wait_for_a_permit_ends_at_the_deadline_and_at_close() -> None:
    """The request gets DeadlineExceededError or ServiceUnavailable."""
    async with batching(Device(), max_concurrency=1) as batcher:
        with batcher.reserve() as first, batcher.reserve() as waiting:
            await first.start()
            waiting.deadline = asyncio.get_running_loop().time()
            with pytest.raises(DeadlineExceededError):
                await waiting.start()
            waiting.deadline = None
            start = asyncio.create_task(waiting.start())
            await run_pending_tasks()
            await batcher.close(0)
            with pytest.raises(ServiceUnavailable):
                await start


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
