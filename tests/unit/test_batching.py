"""The micro-batcher's contract, line by line. Batches are gated by events; nothing here sleeps."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any

import pytest

from resnet_service.batching import BatchResult, MicroBatcher, WarmupResult, warm_up
from resnet_service.errors import (
    DeadlineExceededError,
    DeviceError,
    DeviceOutOfMemoryError,
    InferenceError,
    OverloadedError,
    ServiceUnavailable,
)


def asynchronous(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on a loop of its own, and fail it rather than hang."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 20))

    return run


class Device:
    """A runner whose batches wait at a gate; items are ints, and an item's result is its tenfold."""

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
async def batching(
    *devices: Any, warmed: WarmupResult | None = None, **options: Any
) -> AsyncIterator[MicroBatcher[int, int]]:
    batcher: MicroBatcher[int, int] = MicroBatcher(devices, **{"max_batch": 4, "max_queue": 100, **options})
    batcher.start(warmed)
    try:
        yield batcher
    finally:
        for device in devices:
            if isinstance(device, Device):
                device.gate.set()
        await batcher.close(1.0)


def submit(batcher: MicroBatcher[int, int], *items: int) -> list[asyncio.Task[BatchResult[int]]]:
    return [asyncio.create_task(batcher.submit(item)) for item in items]


async def settled() -> None:
    """Let every task run until it waits for something that only the test can do."""
    for _ in range(20):
        await asyncio.sleep(0)


async def occupy(
    batcher: MicroBatcher[int, int], device: Device, item: int = 0
) -> asyncio.Task[BatchResult[int]]:
    """Put one item on the device and keep it there."""
    (task,) = submit(batcher, item)
    await device.started.acquire()
    return task


# 1. Work-conserving


@asynchronous
async def test_a_lone_item_goes_at_once() -> None:
    """A free device takes what waits, without waiting for company."""
    device = Device()
    async with batching(device) as batcher:
        await occupy(batcher, device, 7)
        assert device.batches == [[7]]


@asynchronous
async def test_the_next_batch_fills_while_one_runs() -> None:
    """What arrives during a batch goes together in the next one."""
    device = Device()
    async with batching(device) as batcher:
        first = await occupy(batcher, device)
        rest = submit(batcher, 1, 2, 3)
        await settled()
        device.gate.set()
        answers = await asyncio.gather(first, *rest)
        assert device.batches == [[0], [1, 2, 3]]
        assert [answer.result for answer in answers] == [0, 10, 20, 30]
        assert [answer.batch_size for answer in answers] == [1, 3, 3, 3]


@asynchronous
async def test_items_of_one_moment_share_a_batch() -> None:
    """Concurrent callers are coalesced even when the device is idle."""
    device = Device(open_gate=True)
    async with batching(device) as batcher:
        await asyncio.gather(*submit(batcher, 1, 2, 3))
        assert device.batches == [[1, 2, 3]]


@asynchronous
async def test_no_batch_is_larger_than_max_batch() -> None:
    """Ten items at a largest batch of four go as four, four and two."""
    device = Device()
    async with batching(device) as batcher:
        await occupy(batcher, device)
        tasks = submit(batcher, *range(1, 11))
        await settled()
        device.gate.set()
        await asyncio.gather(*tasks)
        assert device.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


@asynchronous
async def test_no_batch_is_larger_than_is_worth_taking() -> None:
    """Where batches of two are as good as any, three items go as two and one, and four still fit."""
    device = Device(open_gate=True)
    async with batching(device, warmed=WarmupResult({}, largest_useful_batch=2)) as batcher:
        await asyncio.gather(*submit(batcher, 1, 2, 3))
        assert device.batches == [[1, 2], [3]]
        assert (batcher.largest_batch, batcher.max_batch) == (2, 4)


@pytest.mark.parametrize(
    ("fixed_s", "each_s", "worthwhile"),
    [(0.0, 0.019, 4), (0.005, 0.019, 8), (0.0, 0.001, 24), (0.0012, 0.00007, 24), (0.1, 0.0, 24)],
    ids=["no fixed cost", "two cores", "a small network", "a large GPU", "no cost of an item"],
)
@asynchronous
async def test_warming_up_finds_what_is_worth_taking(fixed_s: float, each_s: float, worthwhile: int) -> None:
    """Sizes run until they do not pay: the next brings 2 % or less, and takes more than 50 ms."""
    ran: list[int] = []

    async def run(size: int) -> float:
        first = size not in ran
        ran.append(size)
        return 10.0 if first else fixed_s + each_s * size

    warmed = await warm_up(run, 24)
    assert sorted(set(ran)) == [size for size in (1, 2, 4, 8, 16, 24) if size <= 2 * worthwhile]
    assert warmed.largest_useful_batch == worthwhile
    assert warmed.seconds[4] == fixed_s + each_s * 4


@asynchronous
async def test_each_device_pulls_when_it_is_free() -> None:
    """One queue feeds two devices, and a busy one does not hold up the other."""
    slow, fast = Device(), Device()
    async with batching(slow, fast) as batcher:
        await occupy(batcher, slow, 1)
        await occupy(batcher, fast, 2)
        waiting = submit(batcher, 3, 4)
        await settled()
        fast.gate.set()
        await asyncio.gather(*waiting)
        assert (slow.batches, fast.batches) == ([[1]], [[2], [3, 4]])


@asynchronous
async def test_max_wait_lets_a_batch_fill() -> None:
    """With a long window the batch goes when it is full, not before."""
    device = Device(open_gate=True)
    async with batching(device, max_wait_s=60.0) as batcher:
        early = submit(batcher, 1, 2, 3)
        await settled()
        assert device.batches == []
        await asyncio.gather(*early, *submit(batcher, 4))
        assert device.batches == [[1, 2, 3, 4]]


@asynchronous
async def test_max_wait_counts_from_the_oldest_item() -> None:
    """An item that waited out its window while the device was busy goes as soon as the device is free."""
    device = Device()
    async with batching(device, max_wait_s=0.02) as batcher:
        await occupy(batcher, device)
        (oldest,) = submit(batcher, 1)
        past = asyncio.Event()
        asyncio.get_running_loop().call_later(0.03, past.set)
        await past.wait()
        young = submit(batcher, 2)
        device.gate.set()
        await asyncio.gather(oldest, *young)
        assert device.batches == [[0], [1, 2]]


@asynchronous
async def test_max_wait_ends_with_what_there_is() -> None:
    """A window that closes on a batch that is not full sends it."""
    device = Device(open_gate=True)
    async with batching(device, max_wait_s=0.01) as batcher:
        (answer,) = await asyncio.gather(*submit(batcher, 1))
        assert device.batches == [[1]]
        assert answer.queue_s >= 0.009


# 2. First in, first out; nothing ticks


@asynchronous
async def test_first_in_first_out() -> None:
    """Items run in the order of arrival, within and across batches."""
    device = Device()
    async with batching(device, max_batch=2) as batcher:
        await occupy(batcher, device)
        tasks = submit(batcher, 5, 3, 9, 1)
        await settled()
        device.gate.set()
        await asyncio.gather(*tasks)
        assert device.batches == [[0], [5, 3], [9, 1]]


@asynchronous
async def test_idle_means_no_timer_and_nothing_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle batcher schedules nothing on the loop: no poll, no timer, no busy loop."""
    device = Device(open_gate=True)
    async with batching(device, max_wait_s=1.0, max_batch=1) as batcher:
        await asyncio.gather(*submit(batcher, 1))
        await settled()
        loop = asyncio.get_running_loop()
        scheduled: list[str] = []
        for name in ("call_soon", "call_later", "call_at"):
            monkeypatch.setattr(loop, name, _recording(getattr(loop, name), name, scheduled))
        # The loop turns five times for this test's own sake.
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


# 3. The gone are dropped


@asynchronous
async def test_a_cancelled_caller_is_not_run() -> None:
    """A caller that left while waiting is not in the batch; its neighbors are."""
    device = Device()
    async with batching(device) as batcher:
        await occupy(batcher, device)
        before, gone, after = submit(batcher, 1, 2, 3)
        await settled()
        gone.cancel()
        # The device becomes free in the very turn of the loop in which the caller is cancelled.
        device.gate.set()
        assert [answer.result for answer in await asyncio.gather(before, after)] == [10, 30]
        assert device.batches == [[0], [1, 3]]


@asynchronous
async def test_a_cancelled_caller_frees_its_place() -> None:
    """The place of a caller that left can be taken at once."""
    device = Device()
    async with batching(device, max_queue=2) as batcher:
        await occupy(batcher, device)
        gone, _ = submit(batcher, 1, 2)
        await settled()
        gone.cancel()
        await settled()
        (late,) = submit(batcher, 3)
        await settled()
        assert not late.done()
        assert batcher.depth == 2


@asynchronous
async def test_a_caller_that_leaves_during_its_batch_disturbs_nobody() -> None:
    """Its result is thrown away, its batch-mates get theirs."""
    device = Device()
    async with batching(device) as batcher:
        await occupy(batcher, device)
        stays, leaves = submit(batcher, 1, 2)
        await settled()
        device.gate.set()
        await device.started.acquire()
        leaves.cancel()
        assert (await stays).result == 10


@asynchronous
async def test_a_passed_deadline_ends_the_wait() -> None:
    """A caller past its deadline gets DeadlineExceededError while the device is still busy, and never runs."""
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


# 4. Every future resolves


@asynchronous
async def test_a_poisonous_item_fails_alone() -> None:
    """An exception fails only the item that causes it: the batch's halves are retried."""
    batches = []

    async def poisoned(items: list[int]) -> list[int]:
        batches.append(items)
        if 3 in items:
            raise ZeroDivisionError("three")
        return [10 * item for item in items]

    async with batching(poisoned) as batcher:
        results = await asyncio.gather(*submit(batcher, 1, 2, 3, 4), return_exceptions=True)
        assert [r.result for r in results if isinstance(r, BatchResult)] == [10, 20, 40]
        failed = results[2]
        assert isinstance(failed, InferenceError)
        assert isinstance(failed.__cause__, ZeroDivisionError)
        assert batches == [[1, 2, 3, 4], [1, 2], [3, 4], [3], [4]]


@asynchronous
async def test_a_failed_batch_leaves_the_next_one_alone() -> None:
    """A runner that always fails fails each item once, and the batcher goes on when it recovers."""
    broken = True

    async def runner(items: list[int]) -> list[int]:
        if broken:
            raise RuntimeError("no")
        return items

    async with batching(runner) as batcher:
        results = await asyncio.gather(*submit(batcher, 1, 2), return_exceptions=True)
        assert all(isinstance(result, InferenceError) for result in results)
        assert len({id(result) for result in results}) == 2
        broken = False
        assert (await batcher.submit(3)).result == 3


@asynchronous
async def test_every_error_of_a_runner_is_reported() -> None:
    """Errors that a retry hides from the callers are still told to `on_failure`."""
    told: list[tuple[str, int]] = []
    once = iter([True])

    async def runner(items: list[int]) -> list[int]:
        if next(once, False):
            raise RuntimeError("just once")
        return items

    async with batching(runner, on_failure=lambda error, size: told.append((str(error), size))) as batcher:
        await asyncio.gather(*submit(batcher, 1, 2))
        assert told == [("just once", 2)]


@asynchronous
async def test_a_wrong_number_of_results_fails_the_batch() -> None:
    """Nobody gets somebody else's result; the next batch is served."""
    sizes = []

    async def forgetful(items: list[int]) -> list[int]:
        sizes.append(len(items))
        return items[:1]

    async with batching(forgetful) as batcher:
        results = await asyncio.gather(*submit(batcher, 1, 2, 3), return_exceptions=True)
        assert [type(result) for result in results] == [InferenceError] * 3
        assert (await batcher.submit(4)).result == 4
        assert sizes == [3, 1]


@asynchronous
async def test_out_of_memory_shrinks_the_batch() -> None:
    """No item fails, and later batches keep to the size that fitted."""
    sizes = []

    async def small(items: list[int]) -> list[int]:
        sizes.append(len(items))
        if len(items) > 2:
            raise DeviceOutOfMemoryError("does not fit")
        return items

    async with batching(small, max_batch=8) as batcher:
        answers = await asyncio.gather(*submit(batcher, *range(8)))
        assert [answer.result for answer in answers] == list(range(8))
        assert batcher.max_batch == 2
        sizes.clear()
        await asyncio.gather(*submit(batcher, *range(5)))
        assert sizes == [2, 2, 1]


@asynchronous
async def test_memory_that_is_free_again_is_used() -> None:
    """Some time after a device ran out of memory batches grow to what they were, one doubling at a time."""
    sizes: list[int] = []
    fits = [2]

    async def crowded(items: list[int]) -> list[int]:
        if len(items) > fits[0]:
            raise DeviceOutOfMemoryError("does not fit")
        sizes.append(len(items))
        return items

    async with batching(crowded, max_batch=8, grow_after_s=0) as batcher:
        await asyncio.gather(*submit(batcher, *range(8)))
        assert max(sizes) == 2
        fits[0] = 8
        sizes.clear()
        for _ in range(3):
            await asyncio.gather(*submit(batcher, *range(8)))
        assert batcher.max_batch == 8
        assert sizes[-1] == 8


@asynchronous
async def test_a_runner_that_cancels_itself_does_not_kill_its_worker() -> None:
    """A CancelledError that comes out of a runner is that batch's failure."""

    async def runner(items: list[int]) -> list[int]:
        if items == [1]:
            raise asyncio.CancelledError
        return items

    async with batching(runner) as batcher:
        with pytest.raises(InferenceError):
            await batcher.submit(1)
        assert (await batcher.submit(2)).result == 2


@asynchronous
async def test_a_failed_device_ends_what_waits_and_rejects_the_rest() -> None:
    """After the last device failed for good nobody waits for ever."""

    async def dead(_: list[int]) -> list[int]:
        raise DeviceError("gone")

    async with batching(dead, max_batch=1) as batcher:
        results = await asyncio.gather(*submit(batcher, 1, 2), return_exceptions=True)
        assert isinstance(results[0], InferenceError)
        assert isinstance(results[1], ServiceUnavailable)
        assert isinstance(batcher.failure, DeviceError)
        with pytest.raises(ServiceUnavailable):
            await batcher.submit(3)


@asynchronous
async def test_a_failed_device_leaves_the_others_at_work() -> None:
    """With a second device the queue goes on."""

    async def dead(_: list[int]) -> list[int]:
        raise DeviceError("gone")

    alive = Device(open_gate=True)
    async with batching(dead, alive) as batcher:
        with pytest.raises(InferenceError):
            await batcher.submit(1)
        assert [(await batcher.submit(item)).result for item in (2, 3)] == [20, 30]
        assert batcher.failure is None


@asynchronous
async def test_a_runner_without_results_fails_its_batch_only() -> None:
    """A runner that returns nothing at all is one that fails; its worker lives on."""

    async def careless(items: list[int]) -> Any:
        return None if items == [1] else items

    async with batching(careless) as batcher:
        with pytest.raises(InferenceError):
            await batcher.submit(1)
        assert (await batcher.submit(2)).result == 2


@asynchronous
async def test_one_item_that_does_not_fit_does_not_shrink_batches() -> None:
    """Out of memory on a batch of one says nothing about how many fit."""

    async def picky(items: list[int]) -> list[int]:
        if items == [1]:
            raise DeviceOutOfMemoryError("does not fit")
        return items

    async with batching(picky) as batcher:
        with pytest.raises(InferenceError, match="memory"):
            await batcher.submit(1)
        assert batcher.max_batch == 4


# 5. Rejection


@asynchronous
async def test_a_full_queue_rejects_at_once() -> None:
    """One more than the queue holds is OverloadedError without a turn of the loop; running ones do not count."""
    device = Device()
    async with batching(device, max_queue=2) as batcher:
        await occupy(batcher, device)
        submit(batcher, 1, 2)
        await settled()
        with pytest.raises(OverloadedError) as caught, batcher.reserve():
            pass
        assert caught.value.reason == "queue_full"


@asynchronous
async def test_a_reserved_place_counts() -> None:
    """A place taken before its item exists is held for it, and given back when no item comes."""
    device = Device(open_gate=True)
    async with batching(device, max_queue=1) as batcher:
        with batcher.reserve(), pytest.raises(OverloadedError), batcher.reserve():
            pass
        with batcher.reserve() as reservation:
            assert (await reservation.submit(1)).result == 10


class Clock:
    """The batcher's performance counter, which stands still unless a test moves it."""

    now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("resnet_service.batching.batcher.time.perf_counter", lambda: clock.now)
    return clock


async def run_for(
    seconds: float, clock: Clock, batcher: MicroBatcher[int, int], device: Device, *items: int
) -> None:
    """Let the batcher see a batch of these items take so many seconds; the gate is closed again then."""
    tasks = submit(batcher, *items)
    await device.started.acquire()
    clock.now += seconds
    device.gate.set()
    await asyncio.gather(*tasks)
    device.gate.clear()


@asynchronous
async def test_retry_after_follows_the_measured_rate(clock: Clock) -> None:
    """With batches of one second, a queue of two full batches is two seconds and its own batch long."""
    device = Device()
    async with batching(device, max_batch=2, max_queue=4) as batcher:
        # Two batches that take a second each, whatever their size.
        await run_for(1.0, clock, batcher, device, 1)
        await run_for(1.0, clock, batcher, device, 2, 3)
        assert batcher.estimate_wait(0) == pytest.approx(1.0)
        await occupy(batcher, device)
        clock.now += 0.25
        submit(batcher, 4, 5, 6, 7)
        await settled()
        with pytest.raises(OverloadedError) as caught:
            await batcher.submit(8)
        # What is left of the running batch, two full ones, and its own.
        assert caught.value.retry_after_s == pytest.approx(0.75 + 2 + 1)


@asynchronous
async def test_a_deadline_that_cannot_be_met_is_rejected_early(clock: Clock) -> None:
    """Where a batch is known to take a second, nobody is accepted who has less."""
    device = Device()
    async with batching(device) as batcher:
        await run_for(1.0, clock, batcher, device, 1)
        running = await occupy(batcher, device, 2)
        now = asyncio.get_running_loop().time()
        with pytest.raises(OverloadedError) as caught:
            await batcher.submit(3, now + 0.5)
        assert caught.value.reason == "deadline"
        patient = asyncio.create_task(batcher.submit(4, now + 5))
        await settled()
        device.gate.set()
        assert [answer.result for answer in await asyncio.gather(running, patient)] == [20, 40]


@asynchronous
async def test_an_idle_device_is_always_tried(clock: Clock) -> None:
    """One slow batch does not make the batcher reject for ever: on an idle device the next item runs."""
    device = Device()
    async with batching(device) as batcher:
        await run_for(100.0, clock, batcher, device, 1)
        device.gate.set()
        deadline = asyncio.get_running_loop().time() + 10
        assert (await batcher.submit(2, deadline)).result == 20


# 6. Closing


@asynchronous
async def test_close_finishes_what_was_accepted_and_rejects_the_rest() -> None:
    """Everything in the queue, and places reserved before, are answered; new work is ServiceUnavailable."""
    device = Device()
    async with batching(device) as batcher:
        with batcher.reserve() as reservation:
            first = await occupy(batcher, device)
            waiting = submit(batcher, *range(1, 7))
            await settled()
            closing = asyncio.create_task(batcher.close(10.0))
            await settled()
            with pytest.raises(ServiceUnavailable):
                await batcher.submit(8)
            device.gate.set()
            answers = await asyncio.gather(first, *waiting)
            assert [answer.result for answer in answers] == [0, 10, 20, 30, 40, 50, 60]
            assert not closing.done()
            assert (await reservation.submit(7)).result == 70
        await closing


@asynchronous
async def test_close_returns_within_its_bound() -> None:
    """A device that never answers cannot hold up the end; those who wait get the shutdown error."""
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
                await reservation.submit(2)


@asynchronous
async def test_nothing_is_accepted_before_start() -> None:
    """A batcher that was not started rejects instead of keeping callers waiting."""
    batcher: MicroBatcher[int, int] = MicroBatcher([Device()], max_batch=1, max_queue=1)
    with pytest.raises(ServiceUnavailable):
        await batcher.submit(1)
    await batcher.close(1.0)
