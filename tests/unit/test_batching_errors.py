"""The contract of the micro-batcher, line 4: every future resolves. No test depends on timing."""

import asyncio
from typing import Any

import pytest

from resnet_service.batching import BatchResult
from resnet_service.errors import (
    DeviceError,
    DeviceOutOfMemoryError,
    InferenceError,
    ServiceUnavailable,
)
from tests.support.batching import (
    Device,
    batching,
    run_async,
    submit,
)


@run_async
async def test_only_the_item_that_causes_an_error_fails() -> None:
    """The halves of a failed batch are retried until the item that causes the error is alone."""
    batches = []

    async def fail_for_three(items: list[int]) -> list[int]:
        batches.append(items)
        if 3 in items:
            raise ZeroDivisionError("three")
        return [10 * item for item in items]

    async with batching(fail_for_three) as batcher:
        results = await asyncio.gather(*submit(batcher, 1, 2, 3, 4), return_exceptions=True)
        assert [r.result for r in results if isinstance(r, BatchResult)] == [10, 20, 40]
        failed = results[2]
        assert isinstance(failed, InferenceError)
        assert isinstance(failed.__cause__, ZeroDivisionError)
        assert batches == [[1, 2, 3, 4], [1, 2], [3, 4], [3], [4]]


@run_async
async def test_failed_batch_does_not_affect_the_next_one() -> None:
    """Each item of a failed batch gets an error of its own, and the next batch succeeds."""
    broken = True

    async def runner(items: list[int]) -> list[int]:
        if broken:
            raise RuntimeError("broken")
        return items

    async with batching(runner) as batcher:
        results = await asyncio.gather(*submit(batcher, 1, 2), return_exceptions=True)
        assert all(isinstance(result, InferenceError) for result in results)
        assert len({id(result) for result in results}) == 2
        broken = False
        assert (await batcher.submit(3)).result == 3


@run_async
async def test_on_failure_gets_every_error() -> None:
    """Errors that callers do not see, because a retry succeeded, are passed to `on_failure`."""
    errors: list[tuple[str, int]] = []
    once = iter([True])

    async def runner(items: list[int]) -> list[int]:
        if next(once, False):
            raise RuntimeError("just once")
        return items

    async with batching(runner, on_failure=lambda error, size: errors.append((str(error), size))) as batcher:
        await asyncio.gather(*submit(batcher, 1, 2))
        assert errors == [("just once", 2)]


@run_async
async def test_wrong_number_of_results_fails_the_batch() -> None:
    """No item gets the result of another one; the next batch succeeds."""
    sizes = []

    async def drop_results(items: list[int]) -> list[int]:
        sizes.append(len(items))
        return items[:1]

    async with batching(drop_results) as batcher:
        results = await asyncio.gather(*submit(batcher, 1, 2, 3), return_exceptions=True)
        assert [type(result) for result in results] == [InferenceError] * 3
        assert (await batcher.submit(4)).result == 4
        assert sizes == [3, 1]


@run_async
async def test_out_of_memory_reduces_the_batch_size() -> None:
    """No item fails, and later batches have the size that fitted."""
    sizes = []

    async def run_up_to_two(items: list[int]) -> list[int]:
        sizes.append(len(items))
        if len(items) > 2:
            raise DeviceOutOfMemoryError("does not fit")
        return items

    async with batching(run_up_to_two, max_batch=8) as batcher:
        results = await asyncio.gather(*submit(batcher, *range(8)))
        assert [result.result for result in results] == list(range(8))
        assert batcher.max_batch == 2
        sizes.clear()
        await asyncio.gather(*submit(batcher, *range(5)))
        assert sizes == [2, 2, 1]


@run_async
async def test_batch_size_grows_again_after_out_of_memory() -> None:
    """Some time after an out-of-memory error, the batch size doubles until it is max_batch."""
    sizes: list[int] = []
    limit = [2]

    async def run_if_it_fits(items: list[int]) -> list[int]:
        if len(items) > limit[0]:
            raise DeviceOutOfMemoryError("does not fit")
        sizes.append(len(items))
        return items

    async with batching(run_if_it_fits, max_batch=8, grow_after_s=0) as batcher:
        await asyncio.gather(*submit(batcher, *range(8)))
        assert max(sizes) == 2
        limit[0] = 8
        sizes.clear()
        for _ in range(3):
            await asyncio.gather(*submit(batcher, *range(8)))
        assert batcher.max_batch == 8
        assert sizes[-1] == 8


@run_async
async def test_cancelled_error_of_a_runner_fails_its_batch_only() -> None:
    """If a runner raises CancelledError, its worker continues with the next batch."""

    async def runner(items: list[int]) -> list[int]:
        if items == [1]:
            raise asyncio.CancelledError
        return items

    async with batching(runner) as batcher:
        with pytest.raises(InferenceError):
            await batcher.submit(1)
        assert (await batcher.submit(2)).result == 2


@run_async
async def test_failure_of_the_last_device_fails_waiting_and_new_items() -> None:
    """After the last device has failed, no caller waits forever."""

    async def fail(_: list[int]) -> list[int]:
        raise DeviceError("failed")

    async with batching(fail, max_batch=1) as batcher:
        results = await asyncio.gather(*submit(batcher, 1, 2), return_exceptions=True)
        assert isinstance(results[0], InferenceError)
        assert isinstance(results[1], ServiceUnavailable)
        assert isinstance(batcher.failure, DeviceError)
        with pytest.raises(ServiceUnavailable):
            await batcher.submit(3)


@run_async
async def test_failed_device_does_not_stop_the_others() -> None:
    """With a second device, the queue is still processed."""

    async def fail(_: list[int]) -> list[int]:
        raise DeviceError("failed")

    alive = Device(open_gate=True)
    async with batching(fail, alive) as batcher:
        with pytest.raises(InferenceError):
            await batcher.submit(1)
        assert [(await batcher.submit(item)).result for item in (2, 3)] == [20, 30]
        assert batcher.failure is None


@run_async
async def test_runner_that_returns_none_fails_its_batch_only() -> None:
    """The worker continues with the next batch."""

    async def return_none_once(items: list[int]) -> Any:
        return None if items == [1] else items

    async with batching(return_none_once) as batcher:
        with pytest.raises(InferenceError):
            await batcher.submit(1)
        assert (await batcher.submit(2)).result == 2


@run_async
async def test_out_of_memory_for_one_item_keeps_the_batch_size() -> None:
    """An out-of-memory error of a single item does not show how many items fit."""

    async def fail_for_one(items: list[int]) -> list[int]:
        if items == [1]:
            raise DeviceOutOfMemoryError("does not fit")
        return items

    async with batching(fail_for_one) as batcher:
        with pytest.raises(InferenceError, match="memory"):
            await batcher.submit(1)
        assert batcher.max_batch == 4
