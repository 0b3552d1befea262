"""The queue in front of the devices: holds items in two lanes and forms the next batch."""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from resnet_service.batching.lanes import Lane, Lanes
from resnet_service.errors import DeadlineExceededError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class BatchResult(Generic[Result]):
    """The result of one item, with the times on the performance counter.

    Attributes:
        result: what the runner returned for the item.
        enqueued_at: when the item was queued.
        started_at: when its batch started.
        finished_at: when its batch was finished.
        batch_size: number of items in the batch.
    """

    result: Result
    enqueued_at: float
    started_at: float
    finished_at: float
    batch_size: int


@dataclass(slots=True, eq=False)
class QueueItem(Generic[Item, Result]):
    """A queued item and the future that its caller awaits.

    `deadline` is on the event loop's clock. `enqueued_at` is on the performance counter, because the clock of
    a loop may have a resolution of whole milliseconds.
    """

    item: Item
    future: asyncio.Future[BatchResult[Result]]
    deadline: float | None
    enqueued_at: float
    lane: Lane


class Queue(Generic[Item, Result]):
    """Items in two lanes, each in order of arrival. Workers take batches from it, one worker at a time.

    A reservation is a slot for an item that does not exist yet. Workers of a closed queue continue until all
    reservations are released.
    """

    def __init__(self) -> None:
        self._waiting: Lanes[QueueItem[Item, Result]] = Lanes()
        self._reserved = dict.fromkeys(Lane, 0)
        self._closed = False
        self._wakeup = asyncio.Event()
        self._consumer_lock = asyncio.Lock()  # first come, first served, as asyncio's locks are fair

    def depth(self, lane: Lane) -> int:
        """Return the number of items of a lane that wait."""
        return self._waiting.count(lane)

    def occupied(self, lane: Lane) -> int:
        """Return the number of slots of a lane in use: items that wait and reservations."""
        return self._waiting.count(lane) + self._reserved[lane]

    @property
    def is_empty(self) -> bool:
        """Whether no slot is in use."""
        return not self._waiting and not any(self._reserved.values())

    def reserve(self, lane: Lane) -> None:
        """Add a reservation."""
        self._reserved[lane] += 1

    def release(self, lane: Lane) -> None:
        """Remove a reservation, because its item is about to be added or will not come."""
        self._reserved[lane] -= 1
        self._wakeup.set()

    def add(self, item: Item, deadline: float | None, lane: Lane) -> QueueItem[Item, Result]:
        """Append an item and return its entry; the caller awaits the entry's future."""
        future: asyncio.Future[BatchResult[Result]] = asyncio.get_running_loop().create_future()
        entry = QueueItem(item, future, deadline, time.perf_counter(), lane)
        self._waiting.add(entry, lane)
        self._wakeup.set()
        return entry

    def remove(self, entry: QueueItem[Item, Result]) -> None:
        """Remove an entry if it still waits."""
        self._waiting.remove(entry)

    def close(self) -> None:
        """Let the workers stop as soon as no item waits and no slot is reserved."""
        self._closed = True
        self._wakeup.set()

    def fail_all(self, error: Exception, cause: BaseException | None = None) -> None:
        """Remove every waiting item and fail it with `error`."""
        fail(self._waiting, error, cause)
        self._waiting.clear()

    async def next_batch(
        self, max_batch: int, max_wait_s: float, fill_limit: Callable[[int, int], int]
    ) -> list[QueueItem[Item, Result]]:
        """Wait for items and remove up to `max_batch`, in the order of `Lanes`.

        Bulk items fill a batch with n interactive ones up to `fill_limit(n, max_batch)` items.
        Returns an empty list once the queue is closed and empty.
        """
        async with self._consumer_lock:
            while True:
                while not self._waiting:
                    if self._closed and not any(self._reserved.values()):
                        return []
                    await self._wait_for_change()
                if max_wait_s:
                    await self._wait_for_batch(max_batch, max_wait_s)
                if batch := self._pop_batch(max_batch, fill_limit):
                    return batch

    async def _wait_for_change(self) -> None:
        self._wakeup.clear()
        await self._wakeup.wait()

    async def _wait_for_batch(self, max_batch: int, max_wait_s: float) -> None:
        """Wait until the batch is full or its oldest item has waited for `max_wait_s`."""
        first = filter(None, map(self._waiting.first, Lane))
        oldest_at = min(entry.enqueued_at for entry in first)
        try:
            async with asyncio.timeout(oldest_at + max_wait_s - time.perf_counter()):
                while 0 < len(self._waiting) < max_batch and not self._closed:
                    await self._wait_for_change()
        except TimeoutError:
            pass  # run the batch as it is

    def _pop_batch(
        self, max_batch: int, fill_limit: Callable[[int, int], int]
    ) -> list[QueueItem[Item, Result]]:
        now = asyncio.get_running_loop().time()
        batch: list[QueueItem[Item, Result]] = []
        limit, interactive = max_batch, 0
        while self._waiting and len(batch) < limit:
            entry = self._waiting.pop()
            # The caller's own timeout may fire only later in this iteration of the loop.
            if entry.deadline is not None and entry.deadline <= now:
                fail([entry], DeadlineExceededError("deadline exceeded before inference started"))
            if not entry.future.done():
                batch.append(entry)
                interactive += entry.lane is Lane.INTERACTIVE
            is_last = entry.lane is Lane.INTERACTIVE and not self._waiting.count(Lane.INTERACTIVE)
            if interactive and is_last:
                limit = fill_limit(interactive, max_batch)
        return batch


def fail(
    entries: Iterable[QueueItem[Item, Result]], error: Exception, cause: BaseException | None = None
) -> None:
    """Set `error` on each unresolved future: a copy for each, so that callers do not share a traceback."""
    for entry in entries:
        if not entry.future.done():
            copy = type(error)(*error.args)
            copy.__cause__ = cause
            entry.future.set_exception(copy)
