"""The contract of the micro-batcher about its two lanes: who is first, who waits, and who is rejected."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_service.batching import BULK_INTERVAL, Lane
from resnet_service.batching.lanes import Lanes, entries_ahead
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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("resnet_service.batching.batcher.time.perf_counter", lambda: clock.now)
    return clock


@run_async
async def test_interactive_items_run_before_bulk_ones_that_came_earlier(clock: Clock) -> None:
    """The next batch has the interactive items, and bulk ones fill it: here all batches take 1 s."""
    device = Device()
    async with batching(device) as batcher:
        await run_for(1.0, clock, batcher, device, 0)
        await run_for(1.0, clock, batcher, device, 0, 0, 0, 0)
        device.batches.clear()
        await occupy(batcher, device)
        bulk = submit(batcher, 1, 2, 3, 4, 5, lane=Lane.BULK)
        interactive = submit(batcher, 6, 7)
        await run_pending_tasks()
        clock.now += 1
        device.gate.set()
        await asyncio.gather(*bulk, *interactive)
        assert device.batches == [[0], [6, 7, 1, 2], [3, 4, 5]]


@run_async
@pytest.mark.parametrize(
    ("seconds", "batches"), [((1.0, 1.2), [[6, 1, 2, 3], [4, 5]]), ((1.0, 2.2), [[6, 1], [2, 3, 4, 5]])]
)
async def test_bulk_items_fill_a_batch_as_far_as_it_takes_little_longer(
    clock: Clock, seconds: tuple[float, float], batches: list[list[int]]
) -> None:
    """A batch of one takes 1 s. If a full one takes 1.2 s, it is filled; if 2.2 s, one item is added."""
    device = Device()
    async with batching(device) as batcher:
        for _ in range(20):
            await run_for(seconds[0], clock, batcher, device, 0)
            await run_for(seconds[1], clock, batcher, device, 0, 0, 0, 0)
        device.batches.clear()
        await occupy(batcher, device)
        bulk = submit(batcher, 1, 2, 3, 4, 5, lane=Lane.BULK)
        interactive = submit(batcher, 6)
        await run_pending_tasks()
        clock.now += seconds[0]
        device.gate.set()
        await asyncio.gather(*bulk, *interactive)
        assert device.batches == [[0], *batches]


@run_async
async def test_bulk_items_alone_run_in_full_batches() -> None:
    """Without interactive items, nothing is kept free for them."""
    device = Device()
    async with batching(device) as batcher:
        await occupy(batcher, device)
        bulk = submit(batcher, *range(1, 9), lane=Lane.BULK)
        await run_pending_tasks()
        device.gate.set()
        await asyncio.gather(*bulk)
        assert device.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]


@run_async
@pytest.mark.parametrize("max_batch", [1, 3, 16])
async def test_bulk_items_never_starve(max_batch: int) -> None:
    """While interactive items always wait, one of eight items that run is bulk, for batches of any size."""
    device = Device()
    async with batching(device, max_batch=max_batch) as batcher:
        await occupy(batcher, device, -1)
        bulk = submit(batcher, *range(10), lane=Lane.BULK)
        interactive = submit(batcher, *range(100, 180))
        await run_pending_tasks()
        device.gate.set()
        await asyncio.gather(*bulk, *interactive)
    order = [item for batch in device.batches[1:] for item in batch]
    positions = [position for position, item in enumerate(order) if item < 100]
    assert positions == [(number + 1) * BULK_INTERVAL - 1 for number in range(10)]


@given(st.lists(st.sampled_from(["interactive", "bulk", "pop"]), max_size=200))
def test_each_lane_keeps_its_order_and_bulk_waits_for_seven_at_most(operations: list[str]) -> None:
    """For any sequence of arrivals, each lane is first in, first out, and the bound on bulk entries holds."""
    lanes: Lanes[tuple[Lane, int]] = Lanes()
    waiting: dict[Lane, list[tuple[Lane, int]]] = {lane: [] for lane in Lane}
    passed = 0
    for number, operation in enumerate(operations):
        if operation != "pop":
            lane = Lane[operation.upper()]
            lanes.add((lane, number), lane)
            waiting[lane].append((lane, number))
        elif any(waiting.values()):
            entry = lanes.pop()
            assert entry == waiting[entry[0]].pop(0)
            if entry[0] is Lane.BULK:
                assert passed == BULK_INTERVAL - 1 or not waiting[Lane.INTERACTIVE]
                passed = 0
            else:
                passed = passed + 1 if waiting[Lane.BULK] else 0
                assert passed < BULK_INTERVAL
        assert len(lanes) == sum(map(len, waiting.values()))
        assert set(lanes) == {entry for lane in Lane for entry in waiting[lane]}


@given(st.integers(0, 40), st.integers(0, 40), st.sampled_from(Lane))
def test_number_of_entries_ahead_is_that_of_the_order_in_which_they_are_taken(
    interactive: int, bulk: int, lane: Lane
) -> None:
    """An entry that is added to lanes that were idle is taken after so many others."""
    lanes: Lanes[object] = Lanes()
    for each, count in ((Lane.INTERACTIVE, interactive), (Lane.BULK, bulk)):
        for _ in range(count):
            lanes.add(object(), each)
    entry = object()
    lanes.add(entry, lane)
    taken = 0
    while lanes.pop() is not entry:
        taken += 1
    assert taken == entries_ahead(lane, interactive, bulk)


@run_async
async def test_cancelled_bulk_item_is_not_run() -> None:
    """An item whose caller is cancelled leaves its lane."""
    device = Device()
    async with batching(device) as batcher:
        await occupy(batcher, device)
        cancelled, kept = submit(batcher, 1, 2, lane=Lane.BULK)
        await run_pending_tasks()
        cancelled.cancel()
        await run_pending_tasks()
        assert batcher.depth(Lane.BULK) == 1
        device.gate.set()
        assert (await kept).result == 20
        assert device.batches == [[0], [2]]


@run_async
async def test_bulk_items_do_not_fill_the_queue_for_interactive_ones() -> None:
    """If bulk items fill the queue, interactive ones are still accepted; bulk ones are rejected."""
    device = Device()
    async with batching(device, max_queue=2) as batcher:
        running = await occupy(batcher, device)
        bulk = submit(batcher, 1, 2, lane=Lane.BULK)
        await run_pending_tasks()
        interactive = submit(batcher, 3, 4)
        await run_pending_tasks()
        for lane in Lane:
            with pytest.raises(OverloadedError, match="the queue is full"):
                await batcher.submit(5, lane=lane)
        device.gate.set()
        results = await asyncio.gather(running, *bulk, *interactive)
        assert [result.result for result in results] == [0, 10, 20, 30, 40]


@run_async
async def test_estimated_wait_of_interactive_items_does_not_count_bulk_ones(clock: Clock) -> None:
    """With batches of 1 s and 16 bulk items, an interactive item is next, and a bulk item is last."""
    device = Device()
    async with batching(device, max_queue_wait_s=5) as batcher:
        await run_for(1.0, clock, batcher, device, 1)
        await run_for(1.0, clock, batcher, device, 2, 3, 4, 5)
        await occupy(batcher, device)
        bulk = submit(batcher, *range(10, 26), lane=Lane.BULK)
        await run_pending_tasks()
        assert batcher.estimate_wait(Lane.INTERACTIVE) == pytest.approx(1 + 1)
        assert batcher.estimate_wait(Lane.BULK) == pytest.approx(1 + 4 + 1)
        now = asyncio.get_running_loop().time()
        accepted = asyncio.create_task(batcher.submit(30, now + 3))
        with pytest.raises(OverloadedError, match="exceeds 5 s"):
            await batcher.submit(31, lane=Lane.BULK)
        await run_pending_tasks()
        device.gate.set()
        await asyncio.gather(accepted, *bulk)


@run_async
async def test_bulk_requests_take_at_most_half_of_the_permits() -> None:
    """Of four permits, bulk requests get two; an interactive one starts at once."""
    async with batching(Device(), max_concurrency=4) as batcher:
        bulk = [batcher.reserve(lane=Lane.BULK) for _ in range(3)]
        assert [reservation.try_start() for reservation in bulk] == [True, True, False]
        interactive = [batcher.reserve() for _ in range(3)]
        assert [reservation.try_start() for reservation in interactive] == [True, True, False]
        for reservation in (*bulk, *interactive):
            reservation.suspend()


@run_async
async def test_permit_is_passed_on_to_an_interactive_request_first() -> None:
    """Of two requests that wait, the interactive one starts first, although it came later."""
    async with batching(Device(), max_concurrency=1) as batcher:
        running = batcher.reserve()
        await running.start()
        order: list[str] = []

        async def request(name: str, lane: Lane) -> None:
            with batcher.reserve(lane=lane) as reservation:
                await reservation.start()
                order.append(name)

        waiting = [
            asyncio.create_task(request("bulk", Lane.BULK)),
            asyncio.create_task(request("interactive", Lane.INTERACTIVE)),
        ]
        await run_pending_tasks()
        assert batcher.waiting == 2
        running.suspend()
        await asyncio.gather(*waiting)
        assert order == ["interactive", "bulk"]


@run_async
async def test_request_whose_lane_changes_frees_what_it_took() -> None:
    """A request that becomes bulk once its body was read returns slot and permit to the right lanes."""
    device = Device(open_gate=True)
    async with batching(device, max_concurrency=1, max_queue=1) as batcher:
        for _ in range(3):
            with batcher.reserve() as reservation:
                await reservation.start()
                reservation.lane = Lane.BULK
                assert (await reservation.run(prepared(1))).result == 10
        with batcher.reserve() as reservation:
            assert reservation.try_start()


@run_async
async def test_permit_is_passed_over_a_request_that_is_cancelled_at_the_same_moment() -> None:
    """Of two requests that wait, the first is cancelled when a permit is returned: the second gets it."""
    async with batching(Device(), max_concurrency=1) as batcher:
        running = batcher.reserve()
        await running.start()
        with batcher.reserve() as first, batcher.reserve() as second:
            cancelled, waiting = asyncio.create_task(first.start()), asyncio.create_task(second.start())
            await run_pending_tasks()
            cancelled.cancel()
            running.suspend()
            await waiting
            with pytest.raises(asyncio.CancelledError):
                await cancelled
        with batcher.reserve() as last:
            assert last.try_start()


@run_async
async def test_closing_fails_the_requests_that_wait_although_one_is_cancelled_at_the_same_moment() -> None:
    """The other one gets ServiceUnavailable."""
    async with batching(Device(), max_concurrency=1) as batcher:
        running = batcher.reserve()
        await running.start()
        cancelled = asyncio.create_task(batcher.reserve().start())
        waiting = asyncio.create_task(batcher.reserve().start())
        await run_pending_tasks()
        cancelled.cancel()
        await batcher.close(0)
        with pytest.raises(ServiceUnavailable):
            await waiting


@run_async
async def test_estimated_wait_for_a_permit_counts_the_time_of_other_lanes(clock: Clock) -> None:
    """A bulk permit is returned every second; interactive requests that start in between change nothing."""
    async with batching(Device(), max_concurrency=4) as batcher:
        running = [batcher.reserve(lane=Lane.BULK) for _ in range(2)]
        for reservation in running:
            await reservation.start()
        waiting = [batcher.reserve(lane=Lane.BULK) for _ in range(20)]
        tasks = [asyncio.create_task(reservation.start()) for reservation in waiting]
        await run_pending_tasks()
        for number in range(10):
            clock.now += 0.5
            with batcher.reserve() as interactive:
                assert interactive.try_start()
            clock.now += 0.5
            [*running, *waiting][number].suspend()
            await run_pending_tasks()
        assert batcher.estimate_wait(Lane.BULK) == pytest.approx(10.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for reservation in (*running, *waiting):
            reservation.suspend()
