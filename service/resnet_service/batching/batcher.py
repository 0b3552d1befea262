"""Accept items, run them in batches, and resolve every caller's future."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, Self

from resnet_service.batching.cost_model import BatchCostModel, RunningBatch
from resnet_service.batching.queue import BatchResult, Item, Queue, QueueItem, Result, fail
from resnet_service.batching.warmup import WarmupResult
from resnet_service.errors import (
    DeadlineExceededError,
    DeviceError,
    DeviceOutOfMemoryError,
    InferenceError,
    OverloadedError,
    ServiceUnavailable,
)

Runner = Callable[[list[Item]], Awaitable[Sequence[Result]]]
"""Runs one batch on one device and returns one result per item, in the same order."""

_MAX_UNUSED_S: Final = 1.0
"""Time for which an unused reservation holds its slot; otherwise slow uploads could fill the queue."""


class MicroBatcher(Generic[Item, Result]):
    """Groups concurrent `submit` calls into batches for its runners.

    Lives from `start` to `close` on one event loop and must be used from that loop only. Deadlines are times
    on that loop's clock (`asyncio.get_running_loop().time()`). Errors are shown to HTTP clients, so their
    messages say "image" instead of "item".

        batcher = MicroBatcher([run_on_gpu], max_batch=32, max_queue=256)
        batcher.start()
        result = await batcher.submit(item)
        await batcher.close(timeout_s=10)
    """

    def __init__(
        self,
        runners: Sequence[Runner[Item, Result]],
        *,
        max_batch: int,
        max_queue: int,
        max_wait_s: float = 0.0,
        grow_after_s: float = 60.0,
        on_failure: Callable[[BaseException, int], None] | None = None,
    ) -> None:
        """Create a batcher with one worker per runner.

        `grow_after_s` seconds after an out-of-memory error, larger batches are tried again: another process
        may have used the memory. `on_failure` is called with each error that a runner raises and the size of
        the batch, whether the batch is retried or not.
        """
        if not runners or max_batch < 1 or max_queue < 1 or max_wait_s < 0:
            raise ValueError("a runner, max_batch >= 1, max_queue >= 1 and max_wait_s >= 0 are required")
        self._runners = tuple(runners)
        self._max_batch = self._configured_max_batch = self._useful_max_batch = max_batch
        self._grow_after_s, self._shrunk_at = grow_after_s, 0.0
        self.max_queue = max_queue
        self._max_wait_s = max_wait_s
        self._on_failure = on_failure
        self._queue: Queue[Item, Result] = Queue()
        self._workers: list[asyncio.Task[None]] = []
        self._running: dict[asyncio.Task[None], RunningBatch] = {}
        self._unused: dict[Reservation[Item, Result], float] = {}  # the time of each, oldest first
        self._cost_model = BatchCostModel()
        self._unavailable_reason: str | None = "the service is starting"
        self.failure: Exception | None = None
        """The error that ended the last worker, usually DeviceError; after it, every item is rejected."""

    @property
    def depth(self) -> int:
        """Number of items that wait, without reservations."""
        return self._queue.depth

    @property
    def max_batch(self) -> int:
        """The largest batch that fits the device: halved when it is out of memory, doubled again later."""
        return self._max_batch

    @property
    def largest_batch(self) -> int:
        """The largest batch that is formed: `max_batch` or the largest useful size, whichever is smaller."""
        return min(self._max_batch, self._useful_max_batch)

    def start(self, warmup: WarmupResult | None = None) -> None:
        """Start the workers and accept items; `warmup` provides the first estimates of batch times."""
        if warmup is not None:
            self._useful_max_batch = warmup.largest_useful_batch
            for size, seconds in warmup.seconds.items():
                self._cost_model.observe(size, seconds)
        self._unavailable_reason = None
        self._workers = [asyncio.create_task(self._worker_loop(runner)) for runner in self._runners]

    async def submit(self, item: Item, deadline: float | None = None) -> BatchResult[Result]:
        """Queue an item and wait for its result. Raises what `reserve` and `Reservation.run` raise."""
        self._check_admission(deadline)
        return await self._enqueue(item, deadline)

    def reserve(self, deadline: float | None = None) -> "Reservation[Item, Result]":
        """Reserve a slot in the queue before the item exists, so that no work is wasted on a rejected item.

        A reservation is finished even if `close` is called after it. Raises OverloadedError if the queue is
        full or the deadline cannot be met, and ServiceUnavailable before `start` and after `close`.
        """
        now = time.perf_counter()
        while self._unused and now - next(iter(self._unused.values())) > _MAX_UNUSED_S:
            self._release(next(iter(self._unused)))
        self._check_admission(deadline)
        reservation = Reservation(self, deadline)
        self._queue.reserve()
        self._unused[reservation] = now
        return reservation

    async def close(self, timeout_s: float) -> None:
        """Reject new items, finish the accepted ones, and return within `timeout_s` seconds.

        Items that are not finished by then fail with ServiceUnavailable.
        """
        self._unavailable_reason = "the service is shutting down"
        self._queue.close()
        if self._workers:
            _, unfinished = await asyncio.wait(self._workers, timeout=timeout_s)
            for worker in unfinished:
                worker.cancel()
            await asyncio.gather(*self._workers, return_exceptions=True)
            self._workers = []
        self._runners = ()  # a runner's owner may refer to this batcher: break the reference cycle
        self._queue.fail_all(_shutdown_error())

    def estimate_wait(self, ahead: int) -> float:
        """Estimate the seconds until an item with `ahead` items in front of it is finished.

        Returns 0 before the first measurement.
        """
        batches, workers = self._running.values(), len(self._workers)
        return self._cost_model.estimate_wait(ahead, batches, workers, self.largest_batch)

    def _check_admission(self, deadline: float | None) -> None:
        if self._unavailable_reason is not None:
            raise ServiceUnavailable(self._unavailable_reason)
        ahead = self._queue.occupied
        expected_s = self.estimate_wait(ahead)
        if ahead >= self.max_queue:
            raise OverloadedError(f"the queue is full ({self.max_queue} images)", "queue_full", expected_s)
        # An idle device accepts any deadline: only a batch that runs can correct a wrong estimate.
        busy = bool(ahead or self._running)
        if busy and deadline is not None and asyncio.get_running_loop().time() + expected_s > deadline:
            message = f"the estimated response time of {expected_s:.1f} s exceeds the deadline"
            raise OverloadedError(message, "deadline", expected_s)

    def _take_slot(self, reservation: "Reservation[Item, Result]") -> None:
        if self._unused.pop(reservation, None) is None:  # used by an earlier item, or held for too long
            self._check_admission(reservation.deadline)
            self._queue.reserve()

    def _release(self, reservation: "Reservation[Item, Result]") -> None:
        if self._unused.pop(reservation, None) is not None:
            self._queue.release()

    async def _enqueue(self, item: Item, deadline: float | None) -> BatchResult[Result]:
        if not self._workers:  # closed, or every device failed, since the slot was reserved
            raise ServiceUnavailable(self._unavailable_reason or "no device is available") from self.failure
        entry = self._queue.add(item, deadline)
        timer = asyncio.timeout_at(deadline)
        try:
            async with timer:
                return await entry.future
        except TimeoutError as error:
            if timer.expired():
                raise DeadlineExceededError("deadline exceeded before inference finished") from error
            raise
        finally:
            self._queue.remove(entry)

    async def _worker_loop(self, runner: Runner[Item, Result]) -> None:
        worker = asyncio.current_task()
        assert worker is not None
        try:
            while True:
                self._maybe_grow()
                batch = await self._queue.next_batch(self.largest_batch, self._max_wait_s)
                if not batch:
                    return
                self._running[worker] = RunningBatch(len(batch), time.perf_counter())
                try:
                    await self._run_batch(runner, batch)
                finally:
                    del self._running[worker]
                    fail(batch, _shutdown_error())  # unresolved only if the worker was cancelled
        except Exception as error:  # noqa: BLE001
            # Any error that ends a worker loses its device.
            self._workers.remove(worker)
            if not self._workers:
                self.failure = error
                self._unavailable_reason = "the device has failed"
                self._queue.fail_all(ServiceUnavailable(self._unavailable_reason), error)

    def _maybe_grow(self) -> None:
        """Double the batch size limit if enough time has passed since it was reduced."""
        is_time = time.perf_counter() - self._shrunk_at >= self._grow_after_s
        if is_time and self._max_batch < self._configured_max_batch:
            self._max_batch = min(2 * self._max_batch, self._configured_max_batch)
            self._shrunk_at = time.perf_counter()

    async def _run_batch(self, runner: Runner[Item, Result], batch: list[QueueItem[Item, Result]]) -> None:
        """Run a batch and resolve its futures; if it fails, run its halves. Raises DeviceError only."""
        batch = [entry for entry in batch if not entry.future.done()]
        if not batch:
            return
        started = time.perf_counter()
        try:
            results = await runner([entry.item for entry in batch])
            count = len(results)
        except (Exception, asyncio.CancelledError) as error:
            if (
                (task := asyncio.current_task()) is not None and task.cancelling()
            ):  # `close` cancelled the worker; otherwise the runner itself was cancelled
                raise
            await self._bisect(runner, batch, error)
            return
        finished = time.perf_counter()
        if count != len(batch):  # the results cannot be assigned to items
            fail(batch, InferenceError(f"the model returned {count} results for {len(batch)} images"))
            return
        self._cost_model.observe(len(batch), finished - started)
        for entry, result in zip(batch, results, strict=True):
            if not entry.future.done():
                outcome = BatchResult(result, entry.enqueued_at, started, finished, len(batch))
                entry.future.set_result(outcome)

    async def _bisect(
        self, runner: Runner[Item, Result], batch: list[QueueItem[Item, Result]], error: BaseException
    ) -> None:
        """Retry the halves of a failed batch, so that only the item that causes the error fails.

        A failed device fails the whole batch. Out of memory also reduces the batch size limit.
        """
        if self._on_failure is not None:
            self._on_failure(error, len(batch))
        if isinstance(error, DeviceError):
            fail(batch, InferenceError("the device has failed"), error)
            raise error
        if len(batch) == 1:
            out_of_memory = isinstance(error, DeviceOutOfMemoryError)
            reason = "the device has too little memory" if out_of_memory else "inference failed"
            fail(batch, InferenceError(f"{reason} for this image"), error)
            return
        if isinstance(error, DeviceOutOfMemoryError):
            self._max_batch = min(self._max_batch, len(batch) // 2)
            self._shrunk_at = time.perf_counter()
        middle = len(batch) // 2
        await self._run_batch(runner, batch[:middle])
        await self._run_batch(runner, batch[middle:])


class Reservation(Generic[Item, Result]):
    """The admission of one request: a slot in the queue, from `MicroBatcher.reserve` to the end of its block.

    The first item uses that slot; each further item that runs at the same time takes another one. `deadline`
    applies to all items.

        with batcher.reserve() as reservation:
            data = await read()
            result = await reservation.run(partial(decode, data))
    """

    def __init__(self, batcher: MicroBatcher[Item, Result], deadline: float | None) -> None:
        self.deadline = deadline
        self._batcher = batcher

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._batcher._release(self)

    def set_timeout(self, seconds: float) -> None:
        """Set the deadline to `seconds` from now."""
        self.deadline = asyncio.get_running_loop().time() + seconds

    async def run(self, prepare: Callable[[], Awaitable[Item]]) -> BatchResult[Result]:
        """Call `prepare` while a slot is held, queue the item that it returns, and wait for its result.

        Raises what `prepare` raises, what `MicroBatcher.reserve` raises if there is no slot for a further
        item, DeadlineExceededError if the deadline passes first, InferenceError if the runner fails for this
        item, and ServiceUnavailable if the batcher is closed first.
        """
        self._batcher._take_slot(self)
        try:
            item = await prepare()
        finally:
            self._batcher._queue.release()
        return await self._batcher._enqueue(item, self.deadline)


def _shutdown_error() -> ServiceUnavailable:
    return ServiceUnavailable("the service shut down before the request was finished")
