"""The micro-batcher: many concurrent callers in, few batches out.

Its contract, a test for each line in tests/test_batching.py:

1. Work-conserving. As soon as a runner is free, whatever waits goes, up to `max_batch`; the next
   batch fills while one runs. Several runners feed from one queue, each pulling when it is free.
   `max_wait_s` counts from the oldest item and is 0 by default.
2. First in, first out; no polling, no timer when idle, no busy loop.
3. A caller that has gone (cancelled, or past its deadline) is dropped before the batch is formed;
   its batch-mates do not notice.
4. Every future resolves: with its result, its own error, or the shutdown error. A wrong number of
   results fails that batch. An exception fails that batch only, after its halves were retried, so
   that one poisonous item fails alone; out-of-memory shrinks the batch instead.
5. A full queue refuses at once, saying when to come back at the measured rate; a deadline that
   cannot be met is refused early.
6. `close` refuses new work, finishes what was accepted, and returns within a bound.

Knows asyncio, the error tree and the clock; no HTTP, no torch, no metrics.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from service.batch_duration import BatchDuration
from service.errors import (
    DeadlineExceeded,
    DeviceFailed,
    DeviceOutOfMemory,
    InferenceFailed,
    NotReady,
    Overloaded,
)

Item = TypeVar("Item")
Result = TypeVar("Result")

Runner = Callable[[list[Item]], Awaitable[Sequence[Result]]]
"""Runs one batch on one device and returns one result an item, in order."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[Result]):
    """A result and where its time went, in seconds; `batch_size` counts the items it ran with."""

    result: Result
    queue_s: float
    run_s: float
    batch_size: int


@dataclass(slots=True, eq=False)
class _Entry(Generic[Item, Result]):
    item: Item
    future: asyncio.Future[Answer[Result]]
    since: float  # on the performance counter: a loop's clock may tick in whole milliseconds
    deadline: float | None


@dataclass(slots=True, eq=False)
class _Running(Generic[Item, Result]):
    entries: list[_Entry[Item, Result]]
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
        on_failure: Callable[[BaseException, int], None] | None = None,
    ) -> None:
        """`on_failure` is told each error a runner raised and the size of the batch, retried or not."""
        if not runners or max_batch < 1 or max_queue < 1 or max_wait_s < 0:
            raise ValueError("needs a runner, max_batch and max_queue of 1 or more, max_wait_s of 0 or more")
        self._runners = tuple(runners)
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._max_wait_s = max_wait_s
        self._on_failure = on_failure
        # Ordered by arrival; a mapping, so that one that goes away is removed at once, wherever it stands.
        self._waiting: OrderedDict[_Entry[Item, Result], None] = OrderedDict()
        self._reserved = 0
        self._running: dict[asyncio.Task[None], _Running[Item, Result]] = {}
        self._duration = BatchDuration()
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()  # one worker at a time forms a batch; asyncio's lock is fair
        self._workers: list[asyncio.Task[None]] = []
        self._refusal: NotReady | None = NotReady("the batcher has not been started")
        self.failure: DeviceFailed | None = None
        """Set once the last device has failed for good; nothing is accepted from then on."""

    @property
    def depth(self) -> int:
        """Items waiting for a device; those reserved but not yet submitted are not counted."""
        return len(self._waiting)

    @property
    def max_batch(self) -> int:
        """The largest batch formed; shrinks when the device runs out of memory."""
        return self._max_batch

    @property
    def running_for_s(self) -> float:
        """How long the oldest batch on a device has been running, in seconds; 0 when none is."""
        if not self._running:
            return 0.0
        return time.perf_counter() - min(batch.since for batch in self._running.values())

    def start(self) -> None:
        """Begin to accept and to run; one worker task for each runner."""
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
        self._reserved += 1
        try:
            yield place
        finally:
            if not place.used:
                self._reserved -= 1
                self._wake.set()

    async def close(self, timeout_s: float) -> None:
        """Refuse new work, finish what was accepted, and return within `timeout_s` seconds.

        What is not finished by then gets NotReady.
        """
        self._refusal = NotReady("the service is shutting down")
        self._wake.set()
        if self._workers:
            _, unfinished = await asyncio.wait(self._workers, timeout=timeout_s)
            for worker in unfinished:
                worker.cancel()
            await asyncio.gather(*self._workers, return_exceptions=True)
            self._workers = []
        self._fail_waiting()

    def seconds_until_answered(self, ahead: int) -> float:
        """Estimate when an item with `ahead` items before it would be answered; 0 before any measurement."""
        now = time.perf_counter()
        idle = len(self._workers) - len(self._running)
        remaining = (
            max(0.0, self._duration.seconds(len(batch.entries)) - (now - batch.since))
            for batch in self._running.values()
        )
        until_free = 0.0 if idle > 0 else min(remaining, default=0.0)
        full_batches, rest = divmod(ahead, self._max_batch)
        rounds = full_batches // max(1, len(self._workers))
        return (
            until_free + rounds * self._duration.seconds(self._max_batch) + self._duration.seconds(rest + 1)
        )

    def _admit(self, deadline: float | None) -> None:
        if self._refusal is not None:
            raise NotReady(str(self._refusal))
        ahead = len(self._waiting) + self._reserved
        expected_s = self.seconds_until_answered(ahead)
        if ahead >= self._max_queue:
            raise Overloaded(f"the queue is full ({self._max_queue} waiting)", "queue_full", expected_s)
        if deadline is not None and asyncio.get_running_loop().time() + expected_s > deadline:
            raise Overloaded(
                f"an answer would take about {expected_s:.1f} s, longer than the deadline allows",
                "deadline",
                expected_s,
            )

    async def _enqueue(self, item: Item, deadline: float | None) -> Answer[Result]:
        self._reserved -= 1
        if not self._workers:  # closed, or every device failed, while the item was being made
            raise NotReady(str(self._refusal)) from self.failure
        loop = asyncio.get_running_loop()
        entry = _Entry[Item, Result](item, loop.create_future(), time.perf_counter(), deadline)
        self._waiting[entry] = None
        self._wake.set()
        timer = asyncio.timeout_at(deadline)
        try:
            async with timer:
                return await entry.future
        except TimeoutError as error:
            if timer.expired():
                raise DeadlineExceeded("no answer before the deadline") from error
            raise
        finally:
            self._waiting.pop(entry, None)

    async def _work(self, runner: Runner[Item, Result]) -> None:
        worker = asyncio.current_task()
        assert worker is not None
        try:
            while batch := await self._next_batch():
                self._running[worker] = _Running(batch, time.perf_counter())
                try:
                    await self._run(runner, batch)
                finally:
                    del self._running[worker]
                    _fail(batch, NotReady("the service shut down before the answer was ready"))
        except DeviceFailed as error:
            self._workers.remove(worker)
            if not self._workers:
                self.failure = error
                self._refusal = NotReady("the device has failed")
                self._fail_waiting()

    async def _next_batch(self) -> list[_Entry[Item, Result]]:
        """Wait for work and take it, oldest first; an empty list means closed and nothing left."""
        async with self._turn:
            while True:
                while not self._waiting:
                    if self._refusal is not None and not self._reserved:
                        return []
                    self._wake.clear()
                    await self._wake.wait()
                await self._fill()
                if batch := self._take():
                    return batch

    async def _fill(self) -> None:
        """With a `max_wait_s`, give the batch until then to fill, counted from its oldest item."""
        if not self._max_wait_s:
            return
        oldest = next(iter(self._waiting))
        try:
            async with asyncio.timeout(oldest.since + self._max_wait_s - time.perf_counter()):
                while 0 < len(self._waiting) < self._max_batch and self._refusal is None:
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            pass  # the window is over: go with what there is

    def _take(self) -> list[_Entry[Item, Result]]:
        now = asyncio.get_running_loop().time()
        batch: list[_Entry[Item, Result]] = []
        while self._waiting and len(batch) < self._max_batch:
            entry, _ = self._waiting.popitem(last=False)
            # A caller's own clean-up may be due only later in this turn of the loop: look for yourself.
            if entry.deadline is not None and entry.deadline <= now:
                _fail([entry], DeadlineExceeded("no answer before the deadline"))
            if not entry.future.done():
                batch.append(entry)
        return batch

    async def _run(self, runner: Runner[Item, Result], batch: list[_Entry[Item, Result]]) -> None:
        """Run a batch and resolve its futures; where it fails, its halves. Raises DeviceFailed only."""
        batch = [entry for entry in batch if not entry.future.done()]
        if not batch:
            return
        started = time.perf_counter()
        try:
            results = await runner([entry.item for entry in batch])
        except (Exception, asyncio.CancelledError) as error:
            if _is_cancelled():  # the worker itself, by `close`; a runner's own cancellation is its failure
                raise
            if self._on_failure is not None:
                self._on_failure(error, len(batch))
            if isinstance(error, DeviceFailed):
                _fail(batch, InferenceFailed("the device has failed"), error)
                raise
            if isinstance(error, DeviceOutOfMemory):
                self._max_batch = min(self._max_batch, max(1, len(batch) // 2))
            if len(batch) == 1:
                memory = isinstance(error, DeviceOutOfMemory)
                reason = "does not fit into the device's memory" if memory else "made the model fail"
                _fail(batch, InferenceFailed(f"this item alone {reason}"), error)
                return
            middle = len(batch) // 2
            await self._run(runner, batch[:middle])
            await self._run(runner, batch[middle:])
            return
        ended = time.perf_counter()
        if len(results) != len(batch):
            # Nobody can tell which result belongs to whom.
            _fail(batch, InferenceFailed(f"{len(results)} results came back for {len(batch)} items"))
            return
        self._duration.observe(len(batch), ended - started)
        for entry, result in zip(batch, results, strict=True):
            if not entry.future.done():
                entry.future.set_result(Answer(result, started - entry.since, ended - started, len(batch)))

    def _fail_waiting(self) -> None:
        _fail(
            list(self._waiting), NotReady("the service shut down before the answer was ready"), self.failure
        )
        self._waiting.clear()


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
        return await self._batcher._enqueue(item, self._deadline)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _fail(
    entries: Sequence[_Entry[Item, Result]], error: Exception, cause: BaseException | None = None
) -> None:
    """Give each entry that has no answer yet an error of its own, so that no traceback is shared."""
    for entry in entries:
        if not entry.future.done():
            own = type(error)(*error.args)
            own.__cause__ = cause
            entry.future.set_exception(own)
