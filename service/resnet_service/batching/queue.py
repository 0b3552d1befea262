"""Who waits, in order, and which of them make the next batch."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from resnet_service.errors import DeadlineExceededError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class BatchResult(Generic[Result]):
    """A result and where its time went, in seconds; `batch_size` counts the items it ran with."""

    result: Result
    queue_s: float
    run_s: float
    batch_size: int


@dataclass(slots=True, eq=False)
class QueueItem(Generic[Item, Result]):
    """An item that waits, and the future its caller waits for."""

    item: Item
    future: asyncio.Future[BatchResult[Result]]
    deadline: float | None
    since: float  # on the performance counter: a loop's clock may tick in whole milliseconds


class Queue(Generic[Item, Result]):
    """Entries in order of arrival, from which workers take batches, one worker at a time.

    `reserved` counts places held for items that do not exist yet; they keep a closed queue open.
    """

    def __init__(self) -> None:
        # A mapping, so that one that goes away is removed at once, wherever it stands.
        self._waiting: OrderedDict[QueueItem[Item, Result], None] = OrderedDict()
        self._reserved = 0
        self._closed = False
        self._wakeup = asyncio.Event()
        self._consumer_lock = asyncio.Lock()  # asyncio's lock is fair

    @property
    def depth(self) -> int:
        """Entries that wait."""
        return len(self._waiting)

    @property
    def occupied(self) -> int:
        """Entries that wait and places that are reserved."""
        return len(self._waiting) + self._reserved

    def reserve(self) -> None:
        """Hold a reservation."""
        self._reserved += 1

    def release(self) -> None:
        """Give a held place back, or turn it into an queued that is added next."""
        self._reserved -= 1
        self._wakeup.set()

    def add(self, item: Item, deadline: float | None) -> QueueItem[Item, Result]:
        """Append an item; its future is what the caller awaits."""
        future: asyncio.Future[BatchResult[Result]] = asyncio.get_running_loop().create_future()
        queued = QueueItem(item, future, deadline, time.perf_counter())
        self._waiting[queued] = None
        self._wakeup.set()
        return queued

    def remove(self, queued: QueueItem[Item, Result]) -> None:
        """Forget an queued whose caller has gone; one that is no longer here is fine."""
        self._waiting.pop(queued, None)

    def close(self) -> None:
        """Let workers go once nothing waits and nothing is reserved."""
        self._closed = True
        self._wakeup.set()

    def fail_all(self, error: Exception, cause: BaseException | None = None) -> None:
        """Give everybody who waits this error."""
        fail(self._waiting, error, cause)
        self._waiting.clear()

    async def next_batch(self, max_batch: int, max_wait_s: float) -> list[QueueItem[Item, Result]]:
        """Wait for work and take it, oldest first; an empty list means closed and nothing left."""
        async with self._consumer_lock:
            while True:
                while not self._waiting:
                    if self._closed and not self._reserved:
                        return []
                    await self._change()
                if max_wait_s:
                    await self._wait_for_batch(max_batch, max_wait_s)
                if batch := self._pop_batch(max_batch):
                    return batch

    async def _change(self) -> None:
        self._wakeup.clear()
        await self._wakeup.wait()

    async def _wait_for_batch(self, max_batch: int, max_wait_s: float) -> None:
        """Give the batch time to fill, counted from its oldest queued."""
        oldest = next(iter(self._waiting))
        try:
            async with asyncio.timeout(oldest.since + max_wait_s - time.perf_counter()):
                while 0 < len(self._waiting) < max_batch and not self._closed:
                    await self._change()
        except TimeoutError:
            pass  # the window is over: go with what there is

    def _pop_batch(self, max_batch: int) -> list[QueueItem[Item, Result]]:
        now = asyncio.get_running_loop().time()
        batch: list[QueueItem[Item, Result]] = []
        while self._waiting and len(batch) < max_batch:
            queued, _ = self._waiting.popitem(last=False)
            # A caller's own clean-up may be due only later in this turn of the loop: look for yourself.
            if queued.deadline is not None and queued.deadline <= now:
                fail([queued], DeadlineExceededError("no answer before the deadline"))
            if not queued.future.done():
                batch.append(queued)
        return batch


def fail(
    items: Iterable[QueueItem[Item, Result]], error: Exception, cause: BaseException | None = None
) -> None:
    """Give each queued that has no answer yet an error of its own, so that no traceback is shared."""
    for queued in items:
        if not queued.future.done():
            own = type(error)(*error.args)
            own.__cause__ = cause
            queued.future.set_exception(own)
