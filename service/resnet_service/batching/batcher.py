"""Accept items, run batches of them, and see that every caller gets an answer."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic

from resnet_service.batching.cost_model import BatchCostModel
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
"""Runs one batch on one device and returns one result an item, in order."""


@dataclass(frozen=True, slots=True)
class _Running:
    size: int
    since: float


class MicroBatcher(Generic[Item, Result]):
    """Turns concurrent `submit` calls into batches for its runners.

    Lives from `start` to `close` on one event loop, and is used from that loop only. Deadlines are
    points on that loop's clock (`asyncio.get_running_loop().time()`).
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
        """`on_failure` is told each error a runner raised and the size of the batch, retried or not.

        So long after a device ran out of memory, which may have been another's doing, larger batches are
        tried again.
        """
        if not runners or max_batch < 1 or max_queue < 1 or max_wait_s < 0:
            raise ValueError("needs a runner, max_batch and max_queue of 1 or more, max_wait_s of 0 or more")
        self._runners = tuple(runners)
        self._max_batch = self._configured_max_batch = self._useful_max_batch = max_batch
        self._grow_after_s = grow_after_s
        self._shrunk_at = 0.0
        self.max_queue = max_queue
        self._max_wait_s = max_wait_s
        self._on_failure = on_failure
        self._queue: Queue[Item, Result] = Queue()
        self._workers: list[asyncio.Task[None]] = []
        self._running: dict[asyncio.Task[None], _Running] = {}
        self._duration = BatchCostModel()
        self._rejection: str | None = "the service is starting"
        self.failure: Exception | None = None
        """What ended the last device's worker, DeviceError as a rule; nothing is accepted from then on."""

    @property
    def depth(self) -> int:
        """Items waiting for a device; those reserved but not yet submitted are not counted."""
        return self._queue.depth

    @property
    def max_batch(self) -> int:
        """The largest batch that fits the device; halved when it runs out of memory, and doubled later."""
        return self._max_batch

    @property
    def largest_batch(self) -> int:
        """The largest batch formed: `max_batch`, or what was worth taking where that is less."""
        return min(self._max_batch, self._useful_max_batch)

    def start(self, warmed: WarmupResult | None = None) -> None:
        """Begin to accept and to run, with what is known of the runners; one worker task for each."""
        if warmed is not None:
            self._useful_max_batch = warmed.largest_useful_batch
            for size, seconds in warmed.seconds.items():
                self._duration.observe(size, seconds)
        self._rejection = None
        self._workers = [asyncio.create_task(self._worker_loop(runner)) for runner in self._runners]

    async def submit(self, item: Item, deadline: float | None = None) -> BatchResult[Result]:
        """Reserve a place, then wait for the answer: see `reserve` and `Reservation.submit` for the errors."""
        with self.reserve(deadline) as reservation:
            return await reservation.submit(item)

    @contextmanager
    def reserve(self, deadline: float | None = None) -> Iterator["Reservation[Item, Result]"]:
        """Take a place in the queue before the item exists, so that no work is done only to be rejected.

        Raises OverloadedError where the queue is full or the deadline cannot be met, ServiceUnavailable before
        `start` and after `close`. What is accepted here is finished even if `close` comes first.
        """
        self._check_admission(deadline)
        reservation = Reservation(self, deadline)
        self._queue.reserve()
        try:
            yield reservation
        finally:
            if not reservation.used:
                self._queue.release()

    async def close(self, timeout_s: float) -> None:
        """Reject new work, finish what was accepted, and return within `timeout_s` seconds.

        What is not finished by then gets ServiceUnavailable.
        """
        self._rejection = "the service is shutting down"
        self._queue.close()
        if self._workers:
            _, unfinished = await asyncio.wait(self._workers, timeout=timeout_s)
            for worker in unfinished:
                worker.cancel()
            await asyncio.gather(*self._workers, return_exceptions=True)
            self._workers = []
        self._runners = ()  # whoever made them may hold this batcher: neither is to keep the other
        self._queue.fail_all(_shutdown_error())

    def estimate_wait(self, ahead: int) -> float:
        """Estimate when an item with `ahead` items before it would be answered; 0 before any measurement."""
        now = time.perf_counter()
        remaining = (
            max(0.0, self._duration.seconds(batch.size) - (now - batch.since))
            for batch in self._running.values()
        )
        idle = len(self._workers) > len(self._running)
        until_free = 0.0 if idle else min(remaining, default=0.0)
        full_batches, rest = divmod(ahead, self.largest_batch)
        rounds = full_batches // max(1, len(self._workers))
        return (
            until_free
            + rounds * self._duration.seconds(self.largest_batch)
            + self._duration.seconds(rest + 1)
        )

    def _check_admission(self, deadline: float | None) -> None:
        if self._rejection is not None:
            raise ServiceUnavailable(self._rejection)
        ahead = self._queue.occupied
        expected_s = self.estimate_wait(ahead)
        if ahead >= self.max_queue:
            raise OverloadedError(f"the queue is full ({self.max_queue} waiting)", "queue_full", expected_s)
        # Never on an idle device: what runs there is how a bad estimate is unlearnt.
        busy = bool(ahead or self._running)
        if busy and deadline is not None and asyncio.get_running_loop().time() + expected_s > deadline:
            raise OverloadedError(
                f"an answer would take about {expected_s:.1f} s, longer than the deadline allows",
                "deadline",
                expected_s,
            )

    async def _submit_reserved(self, item: Item, deadline: float | None) -> BatchResult[Result]:
        self._queue.release()
        if not self._workers:  # closed, or every device failed, while the item was being made
            raise ServiceUnavailable(self._rejection or "no device is at work") from self.failure
        queued = self._queue.add(item, deadline)
        timer = asyncio.timeout_at(deadline)
        try:
            async with timer:
                return await queued.future
        except TimeoutError as error:
            if timer.expired():
                raise DeadlineExceededError("no answer before the deadline") from error
            raise
        finally:
            self._queue.remove(queued)

    async def _worker_loop(self, runner: Runner[Item, Result]) -> None:
        worker = asyncio.current_task()
        assert worker is not None
        try:
            while batch := await self._queue.next_batch(self._current_max_batch(), self._max_wait_s):
                self._running[worker] = _Running(len(batch), time.perf_counter())
                try:
                    await self._run_batch(runner, batch)
                finally:
                    del self._running[worker]
                    fail(batch, _shutdown_error())  # only those the worker was cancelled with
        except Exception as error:  # noqa: BLE001
            # A worker that is gone is a device that is gone, whatever ended it.
            self._workers.remove(worker)
            if not self._workers:
                self.failure = error
                self._rejection = "the device has failed"
                self._queue.fail_all(ServiceUnavailable(self._rejection), error)

    def _current_max_batch(self) -> int:
        """Return the largest batch to form now."""
        if (
            self._max_batch < self._configured_max_batch
            and time.perf_counter() - self._shrunk_at >= self._grow_after_s
        ):
            self._max_batch = min(2 * self._max_batch, self._configured_max_batch)
            self._shrunk_at = time.perf_counter()
        return self.largest_batch

    async def _run_batch(self, runner: Runner[Item, Result], batch: list[QueueItem[Item, Result]]) -> None:
        """Run a batch and resolve its futures; where it fails, its halves. Raises DeviceError only."""
        batch = [queued for queued in batch if not queued.future.done()]
        if not batch:
            return
        started = time.perf_counter()
        try:
            results = await runner([queued.item for queued in batch])
            count = len(results)
        except (Exception, asyncio.CancelledError) as error:
            if _is_cancelled():  # the worker itself, by `close`; a runner's own cancellation is its failure
                raise
            await self._bisect(runner, batch, error)
            return
        seconds = time.perf_counter() - started
        if count != len(batch):
            # Nobody can tell which result belongs to whom.
            fail(batch, InferenceError(f"{count} results came back for {len(batch)} items"))
            return
        self._duration.observe(len(batch), seconds)
        for queued, result in zip(batch, results, strict=True):
            if not queued.future.done():
                queued.future.set_result(BatchResult(result, started - queued.since, seconds, len(batch)))

    async def _bisect(
        self, runner: Runner[Item, Result], batch: list[QueueItem[Item, Result]], error: BaseException
    ) -> None:
        """Find the item that fails by halving; a device that failed or is too small is no item's fault."""
        if self._on_failure is not None:
            self._on_failure(error, len(batch))
        if isinstance(error, DeviceError):
            fail(batch, InferenceError("the device has failed"), error)
            raise error
        if isinstance(error, DeviceOutOfMemoryError) and len(batch) > 1:
            self._max_batch = min(self._max_batch, len(batch) // 2)
            self._shrunk_at = time.perf_counter()
        if len(batch) == 1:
            memory = isinstance(error, DeviceOutOfMemoryError)
            reason = "does not fit into the device's memory" if memory else "made the model fail"
            fail(batch, InferenceError(f"this item alone {reason}"), error)
            return
        middle = len(batch) // 2
        await self._run_batch(runner, batch[:middle])
        await self._run_batch(runner, batch[middle:])


class Reservation(Generic[Item, Result]):
    """A place in the queue, taken before the item is ready; made by `MicroBatcher.reserve`."""

    def __init__(self, batcher: MicroBatcher[Item, Result], deadline: float | None) -> None:
        self._batcher = batcher
        self._deadline = deadline
        self.used = False

    async def submit(self, item: Item) -> BatchResult[Result]:
        """Put the item into the queue and wait for its answer; once only.

        Raises DeadlineExceededError past the deadline, InferenceError where the runner failed on it, and
        ServiceUnavailable where the batcher shut down first.
        """
        if self.used:
            raise RuntimeError("a place holds one item")
        self.used = True
        return await self._batcher._submit_reserved(item, self._deadline)


def _shutdown_error() -> ServiceUnavailable:
    return ServiceUnavailable("the service shut down before the answer was ready")


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
