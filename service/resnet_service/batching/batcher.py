"""Accept items, run them in batches, and resolve every caller's future."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic

from resnet_service.batching.cost_model import BatchCostModel, RunningBatch
from resnet_service.batching.lanes import Lane, entries_ahead
from resnet_service.batching.queue import BatchResult, Item, Queue, QueueItem, Result, fail
from resnet_service.batching.reservation import ConcurrencyLimiter, Reservation
from resnet_service.errors import (
    DeviceError,
    DeviceOutOfMemoryError,
    InferenceError,
    OverloadedError,
    ServiceUnavailable,
)

Runner = Callable[[list[Item]], Awaitable[Sequence[Result]]]
"""Runs one batch on one device and returns one result per item, in the same order."""


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
        largest_batch: int | None = None,
        max_queue: float = math.inf,
        max_queue_wait_s: float = math.inf,
        max_concurrency: float = math.inf,
        max_wait_s: float = 0.0,
        grow_after_s: float = 60.0,
        on_failure: Callable[[BaseException, int], None] | None = None,
    ) -> None:
        """Create a batcher with one worker per runner.

        Batches have at most `max_batch` items, or `largest_batch` if it is set and smaller. An item is
        rejected if `max_queue` items wait or are reserved, or if the estimated time until it is finished
        exceeds `max_queue_wait_s`; for interactive items, bulk ones do not count. At most `max_concurrency`
        reservations are started at a time, at most half of them bulk; the others wait.
        `grow_after_s` seconds after an out-of-memory error, larger batches are tried again: another process
        may have used the memory. `on_failure` is called with each error that a runner raises and the size of
        the batch, whether the batch is retried or not.
        """
        if not runners or min(max_batch, max_queue, max_concurrency) < 1 or max_wait_s < 0:
            raise ValueError(
                "a runner, max_batch, max_queue and max_concurrency >= 1, and max_wait_s >= 0 are required"
            )
        self._runners = tuple(runners)
        self._max_batch = self._configured_max_batch = max_batch
        self._useful_max_batch = largest_batch or max_batch
        self._grow_after_s, self._shrunk_at = grow_after_s, 0.0
        self._max_queue = max_queue
        self._max_queue_wait_s = max_queue_wait_s
        self._max_wait_s = max_wait_s
        self._on_failure = on_failure
        self._queue: Queue[Item, Result] = Queue()
        self._workers: list[asyncio.Task[None]] = []
        self._running: dict[asyncio.Task[None], RunningBatch] = {}
        self._limiter = ConcurrencyLimiter(max_concurrency)
        self._cost_model = BatchCostModel()
        self._unavailable_reason: str | None = "the service is starting"
        self.failure: Exception | None = None
        """The error that ended the last worker, usually DeviceError; after it, every item is rejected."""

    def depth(self, lane: Lane) -> int:
        """Return the number of items of a lane that wait, without reservations."""
        return self._queue.depth(lane)

    @property
    def waiting(self) -> int:
        """Number of reservations that wait for the limit on concurrent ones."""
        return self._limiter.waiting

    @property
    def max_batch(self) -> int:
        """The largest batch that fits the device: halved when it is out of memory, doubled again later."""
        return self._max_batch

    @property
    def largest_batch(self) -> int:
        """The largest batch that is formed: what fits the device, or the limit if that is smaller."""
        return min(self._max_batch, self._useful_max_batch)

    def start(self, seconds_by_size: Mapping[int, float] | None = None) -> None:
        """Start the workers and accept items, with these first estimates of batch times."""
        for size, seconds in (seconds_by_size or {}).items():
            self._cost_model.observe(size, seconds)
        self._unavailable_reason = None
        self._workers = [asyncio.create_task(self._worker_loop(runner)) for runner in self._runners]

    async def submit(
        self, item: Item, deadline: float | None = None, lane: Lane = Lane.INTERACTIVE
    ) -> BatchResult[Result]:
        """Queue an item and wait for its result. Raises what `reserve` and `Reservation.run` raise."""
        self._reserve_slot(deadline, lane, has_permit=True)

        async def prepare() -> Item:
            return item

        return await self._reservation(deadline, lane).run(prepare)

    def reserve(
        self, deadline: float | None = None, lane: Lane = Lane.INTERACTIVE
    ) -> Reservation[Item, Result]:
        """Reserve a slot in the queue before the item exists, so that no work is wasted on a rejected item.

        A reservation is finished even if `close` is called after it. Raises OverloadedError if the queue is
        full or the estimated wait exceeds its limit or the deadline, and ServiceUnavailable before `start`
        and after `close`.
        """
        self._reserve_slot(deadline, lane)
        return self._reservation(deadline, lane)

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
        self._limiter.close(_shutdown_error())
        self._queue.fail_all(_shutdown_error())

    def estimate_wait(self, lane: Lane = Lane.INTERACTIVE, *, has_permit: bool = False) -> float:
        """Estimate the seconds until an item that comes now is finished; 0 before the first measurement.

        With `has_permit`, it does not wait for the reservations that are not started. For a bulk item, the
        interactive ones that come later do not count.
        """
        interactive, bulk = (
            self._queue.occupied(each) - (self._limiter.count_waiting(each) if has_permit else 0)
            for each in Lane
        )
        ahead = entries_ahead(lane, interactive, bulk)
        # A copy: the gauge of this value may be read in another thread, that of the management port.
        batches, workers = tuple(self._running.values()), len(self._workers)
        device_s = self._cost_model.estimate_wait(
            ahead, interactive + bulk - ahead, batches, workers, self.largest_batch
        )
        return device_s if has_permit else max(device_s, self._limiter.estimate_wait(lane))

    def cancel(self, entry: QueueItem[Item, Result]) -> None:
        """Drop an item that waits, because its caller has gone; one that runs is finished."""
        self._queue.remove(entry)
        entry.future.cancel()

    @property
    def has_spare_permits(self) -> bool:
        """Whether less than half of the permits are taken, so that no request waits for one."""
        return self._limiter.is_half_free

    def admission_wait(self, lane: Lane) -> float:
        """Return the seconds that a request must allow, or `reserve` rejects it; infinity if always."""
        if self._queue.is_empty and not self._running:
            return 0.0
        wait_s = self.estimate_wait(lane)
        return math.inf if self._is_full(lane) or wait_s > self._max_queue_wait_s else wait_s

    def _is_full(self, lane: Lane) -> bool:
        counted = Lane if lane is Lane.BULK else (Lane.INTERACTIVE,)
        return sum(map(self._queue.occupied, counted)) >= self._max_queue

    def _reserve_slot(self, deadline: float | None, lane: Lane, *, has_permit: bool = False) -> None:
        if self._unavailable_reason is not None:
            raise ServiceUnavailable(self._unavailable_reason)
        expected_s = self.estimate_wait(lane, has_permit=has_permit)
        if self._is_full(lane):
            raise OverloadedError(f"the queue is full ({self._max_queue} images)", "queue_full", expected_s)
        # An idle device accepts any deadline: only a batch that runs can correct a wrong estimate.
        if self._running or not self._queue.is_empty:
            if expected_s > self._max_queue_wait_s:
                message = f"the estimated wait of {expected_s:.1f} s exceeds {self._max_queue_wait_s:g} s"
                raise OverloadedError(message, "queue_full", expected_s)
            if deadline is not None and asyncio.get_running_loop().time() + expected_s > deadline:
                message = f"the estimated response time of {expected_s:.1f} s exceeds the deadline"
                raise OverloadedError(message, "deadline", expected_s)
        self._queue.reserve(lane)

    def _reservation(self, deadline: float | None, lane: Lane) -> Reservation[Item, Result]:
        return Reservation(self._queue, self._limiter, self._reserve_slot, self.enqueue, deadline, lane)

    def enqueue(self, item: Item, deadline: float | None, lane: Lane) -> QueueItem[Item, Result]:
        """Queue an item that needs no admission, and return its entry with the future of its result.

        Raises ServiceUnavailable if the batcher is closed.
        """
        if not self._workers:  # closed, or every device failed, since the slot was reserved
            raise ServiceUnavailable(self._unavailable_reason or "no device is available") from self.failure
        return self._queue.add(item, deadline, lane)

    async def _worker_loop(self, runner: Runner[Item, Result]) -> None:
        worker = asyncio.current_task()
        assert worker is not None
        try:
            while True:
                self._maybe_grow()
                batch = await self._queue.next_batch(
                    self.largest_batch, self._max_wait_s, self._cost_model.fill_limit
                )
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


def _shutdown_error() -> ServiceUnavailable:
    return ServiceUnavailable("the service shut down before the request was finished")
