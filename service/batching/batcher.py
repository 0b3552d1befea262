"""Accept items, run batches of them, and see that every caller gets an answer."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic

from service.batching.duration import BatchDuration
from service.batching.queue import Answer, Entry, Item, Queue, Result, fail
from service.batching.warming import Warmed
from service.errors import (
    DeadlineExceeded,
    DeviceFailed,
    DeviceOutOfMemory,
    InferenceFailed,
    NotReady,
    Overloaded,
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
        self._max_batch = self._most = self._worthwhile = max_batch
        self._grow_after_s = grow_after_s
        self._shrunk = 0.0
        self.max_queue = max_queue
        self._max_wait_s = max_wait_s
        self._on_failure = on_failure
        self._queue: Queue[Item, Result] = Queue()
        self._workers: list[asyncio.Task[None]] = []
        self._running: dict[asyncio.Task[None], _Running] = {}
        self._duration = BatchDuration()
        self._refusal: str | None = "the service is starting"
        self.failure: Exception | None = None
        """What ended the last device's worker, DeviceFailed as a rule; nothing is accepted from then on."""

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
        return min(self._max_batch, self._worthwhile)

    def start(self, warmed: Warmed | None = None) -> None:
        """Begin to accept and to run, with what is known of the runners; one worker task for each."""
        if warmed is not None:
            self._worthwhile = warmed.worthwhile
            for size, seconds in warmed.seconds.items():
                self._duration.observe(size, seconds)
        self._refusal = None
        self._workers = [asyncio.create_task(self._work(runner)) for runner in self._runners]

    async def submit(self, item: Item, deadline: float | None = None) -> Answer[Result]:
        """Reserve a place, then wait for the answer: see `reserve` and `Place.submit` for the errors."""
        with self.reserve(deadline) as place:
            return await place.submit(item)

    @contextmanager
    def reserve(self, deadline: float | None = None) -> Iterator["Place[Item, Result]"]:
        """Take a place in the queue before the item exists, so that no work is done only to be refused.

        Raises Overloaded where the queue is full or the deadline cannot be met, NotReady before
        `start` and after `close`. What is accepted here is finished even if `close` comes first.
        """
        self._admit(deadline)
        place = Place(self, deadline)
        self._queue.reserve()
        try:
            yield place
        finally:
            if not place.used:
                self._queue.release()

    async def close(self, timeout_s: float) -> None:
        """Refuse new work, finish what was accepted, and return within `timeout_s` seconds.

        What is not finished by then gets NotReady.
        """
        self._refusal = "the service is shutting down"
        self._queue.close()
        if self._workers:
            _, unfinished = await asyncio.wait(self._workers, timeout=timeout_s)
            for worker in unfinished:
                worker.cancel()
            await asyncio.gather(*self._workers, return_exceptions=True)
            self._workers = []
        self._runners = ()  # whoever made them may hold this batcher: neither is to keep the other
        self._queue.fail_all(_shutdown_error())

    def seconds_until_answered(self, ahead: int) -> float:
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

    def _admit(self, deadline: float | None) -> None:
        if self._refusal is not None:
            raise NotReady(self._refusal)
        ahead = self._queue.taken_places
        expected_s = self.seconds_until_answered(ahead)
        if ahead >= self.max_queue:
            raise Overloaded(f"the queue is full ({self.max_queue} waiting)", "queue_full", expected_s)
        # Never on an idle device: what runs there is how a bad estimate is unlearnt.
        busy = bool(ahead or self._running)
        if busy and deadline is not None and asyncio.get_running_loop().time() + expected_s > deadline:
            raise Overloaded(
                f"an answer would take about {expected_s:.1f} s, longer than the deadline allows",
                "deadline",
                expected_s,
            )

    async def _submit_reserved(self, item: Item, deadline: float | None) -> Answer[Result]:
        self._queue.release()
        if not self._workers:  # closed, or every device failed, while the item was being made
            raise NotReady(self._refusal or "no device is at work") from self.failure
        entry = self._queue.add(item, deadline)
        timer = asyncio.timeout_at(deadline)
        try:
            async with timer:
                return await entry.future
        except TimeoutError as error:
            if timer.expired():
                raise DeadlineExceeded("no answer before the deadline") from error
            raise
        finally:
            self._queue.remove(entry)

    async def _work(self, runner: Runner[Item, Result]) -> None:
        worker = asyncio.current_task()
        assert worker is not None
        try:
            while batch := await self._queue.next_batch(self._grown(), self._max_wait_s):
                self._running[worker] = _Running(len(batch), time.perf_counter())
                try:
                    await self._run(runner, batch)
                finally:
                    del self._running[worker]
                    fail(batch, _shutdown_error())  # only those the worker was cancelled with
        except Exception as error:  # noqa: BLE001
            # A worker that is gone is a device that is gone, whatever ended it.
            self._workers.remove(worker)
            if not self._workers:
                self.failure = error
                self._refusal = "the device has failed"
                self._queue.fail_all(NotReady(self._refusal), error)

    def _grown(self) -> int:
        """Return the largest batch to form now."""
        if self._max_batch < self._most and time.perf_counter() - self._shrunk >= self._grow_after_s:
            self._max_batch = min(2 * self._max_batch, self._most)
            self._shrunk = time.perf_counter()
        return self.largest_batch

    async def _run(self, runner: Runner[Item, Result], batch: list[Entry[Item, Result]]) -> None:
        """Run a batch and resolve its futures; where it fails, its halves. Raises DeviceFailed only."""
        batch = [entry for entry in batch if not entry.future.done()]
        if not batch:
            return
        started = time.perf_counter()
        try:
            results = await runner([entry.item for entry in batch])
            count = len(results)
        except (Exception, asyncio.CancelledError) as error:
            if _is_cancelled():  # the worker itself, by `close`; a runner's own cancellation is its failure
                raise
            await self._recover(runner, batch, error)
            return
        seconds = time.perf_counter() - started
        if count != len(batch):
            # Nobody can tell which result belongs to whom.
            fail(batch, InferenceFailed(f"{count} results came back for {len(batch)} items"))
            return
        self._duration.observe(len(batch), seconds)
        for entry, result in zip(batch, results, strict=True):
            if not entry.future.done():
                entry.future.set_result(Answer(result, started - entry.since, seconds, len(batch)))

    async def _recover(
        self, runner: Runner[Item, Result], batch: list[Entry[Item, Result]], error: BaseException
    ) -> None:
        """Find the item that fails by halving; a device that failed or is too small is no item's fault."""
        if self._on_failure is not None:
            self._on_failure(error, len(batch))
        if isinstance(error, DeviceFailed):
            fail(batch, InferenceFailed("the device has failed"), error)
            raise error
        if isinstance(error, DeviceOutOfMemory) and len(batch) > 1:
            self._max_batch = min(self._max_batch, len(batch) // 2)
            self._shrunk = time.perf_counter()
        if len(batch) == 1:
            memory = isinstance(error, DeviceOutOfMemory)
            reason = "does not fit into the device's memory" if memory else "made the model fail"
            fail(batch, InferenceFailed(f"this item alone {reason}"), error)
            return
        middle = len(batch) // 2
        await self._run(runner, batch[:middle])
        await self._run(runner, batch[middle:])


class Place(Generic[Item, Result]):
    """A place in the queue, taken before the item is ready; made by `MicroBatcher.reserve`."""

    def __init__(self, batcher: MicroBatcher[Item, Result], deadline: float | None) -> None:
        self._batcher = batcher
        self._deadline = deadline
        self.used = False

    async def submit(self, item: Item) -> Answer[Result]:
        """Put the item into the queue and wait for its answer; once only.

        Raises DeadlineExceeded past the deadline, InferenceFailed where the runner failed on it, and
        NotReady where the batcher shut down first.
        """
        if self.used:
            raise RuntimeError("a place holds one item")
        self.used = True
        return await self._batcher._submit_reserved(item, self._deadline)


def _shutdown_error() -> NotReady:
    return NotReady("the service shut down before the answer was ready")


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
