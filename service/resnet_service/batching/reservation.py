"""The admission of one request: a slot in the queue, and a permit to be read and run.

The number of permits is the limit on concurrent requests; the others wait, in order of arrival. A request
that waits costs nothing: its body is not read yet. A rejected one would come back at once, and the service
would spend its time on rejections instead of work.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, Generic, Protocol, Self

from resnet_service.batching.queue import BatchResult, Item, Queue, QueueItem, Result
from resnet_service.errors import DeadlineExceededError, ServiceError

_FORGETTING: Final = 0.99
"""Weight of the past for each permit that is passed on: the last 100 count, which are several batches."""


class ConcurrencyLimiter:
    """A fair semaphore with `limit` permits that estimates how long a wait takes.

    limiter = ConcurrencyLimiter(100)
    await limiter.acquire(deadline)
    limiter.release()
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._taken = 0
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._passed_on_at: float | None = None  # the last time while others waited
        self._passed_on = self._seconds = 0.0

    @property
    def waiting(self) -> int:
        """Number of requests that wait for a permit."""
        return len(self._waiting)

    @property
    def is_half_free(self) -> bool:
        """Whether less than half of the permits are taken."""
        return 2 * self._taken < self._limit and not self._waiting

    def estimate_wait(self) -> float:
        """Estimate the seconds until a request that comes now has a permit, from their recent rate."""
        return len(self._waiting) * self._seconds / self._passed_on if self._passed_on else 0.0

    def try_acquire(self) -> bool:
        """Take a permit if no request waits for one, and return whether it was taken."""
        if self._taken < self._limit and not self._waiting:
            self._taken += 1
            return True
        return False

    async def acquire(self, deadline: float | None) -> None:
        """Wait for a permit. Raises DeadlineExceededError, and the error that `close` is called with."""
        if self.try_acquire():
            return
        permit: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[permit] = None
        is_taken = False
        try:
            async with asyncio.timeout_at(deadline):
                await permit
            is_taken = True
        except TimeoutError as error:
            raise DeadlineExceededError("deadline exceeded before the request was read") from error
        finally:
            self._waiting.pop(permit, None)
            if not is_taken and permit.done() and not permit.cancelled() and permit.exception() is None:
                self.release()  # it was passed on at the same moment

    def release(self) -> None:
        """Return a permit; the request that has waited longest gets it."""
        if not self._waiting:
            self._taken -= 1
            self._passed_on_at = None
            return
        now = time.perf_counter()
        if self._passed_on_at is not None:
            self._seconds = _FORGETTING * self._seconds + now - self._passed_on_at
            self._passed_on = _FORGETTING * self._passed_on + 1
        self._passed_on_at = now
        permit, _ = self._waiting.popitem(last=False)
        permit.set_result(None)

    def close(self, error: ServiceError) -> None:
        """Fail all requests that wait."""
        for permit in self._waiting:
            permit.set_exception(type(error)(*error.args))
        self._waiting.clear()


class _ReserveSlot(Protocol):
    def __call__(self, deadline: float | None, *, has_permit: bool = False) -> None: ...


class Reservation(Generic[Item, Result]):
    """A slot in the queue and, after `start`, a permit; created by `MicroBatcher.reserve`.

    The first item uses that slot; further items that run at the same time need none. `deadline` applies to
    all items.

        with batcher.reserve() as reservation:
            await reservation.start()
            data = await read()
            result = await reservation.run(partial(decode, data))
    """

    def __init__(
        self,
        queue: Queue[Item, Result],
        limiter: ConcurrencyLimiter,
        reserve_slot: _ReserveSlot,
        add: Callable[[Item, float | None], QueueItem[Item, Result]],
        deadline: float | None,
    ) -> None:
        self.deadline = deadline
        self._queue = queue
        self._limiter = limiter
        self._reserve_slot = reserve_slot
        self._add = add
        self._has_slot = True
        self._has_permit = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.suspend()

    def extend(self, seconds: float) -> None:
        """Move the deadline, by the time that the client took."""
        if self.deadline is not None:
            self.deadline += seconds

    def try_start(self) -> bool:
        """Start if that needs no wait, directly after `MicroBatcher.reserve`, and return whether it did."""
        self._has_permit = self._limiter.try_acquire()
        return self._has_permit

    async def start(self) -> None:
        """Wait until the request may be read and run; returns at once below the limit on concurrent requests.

        Raises DeadlineExceededError, ServiceUnavailable if the batcher is closed first and, after `suspend`,
        what `MicroBatcher.reserve` raises.
        """
        if not self._has_slot:
            self._reserve_slot(self.deadline, has_permit=True)  # its body has been read: not worth rejecting
            self._has_slot = True
        if not self._has_permit:
            await self._limiter.acquire(self.deadline)
            self._has_permit = True

    def suspend(self) -> None:
        """Give the slot and the permit to others until the next `start`, because the client is slow."""
        if self._has_slot:
            self._has_slot = False
            self._queue.release()
        if self._has_permit:
            self._has_permit = False
            self._limiter.release()

    async def run(self, prepare: Callable[[], Awaitable[Item]]) -> BatchResult[Result]:
        """Call `prepare`, queue the item that it returns, and wait for its result.

        The first item has the slot of the reservation meanwhile. Further items are not rejected: their
        request is admitted, and the caller limits how many of them run at the same time.

        Raises what `prepare` raises, DeadlineExceededError if the deadline passes first, InferenceError if
        the runner fails for this item, and ServiceUnavailable if the batcher is closed first.
        """
        is_first = self.claim()
        try:
            item = await prepare()
        except BaseException:
            if is_first:
                self.drop()
            raise
        entry = self.submit(item, is_first=is_first)
        timer = asyncio.timeout_at(self.deadline)
        try:
            async with timer:
                return await entry.future
        except TimeoutError as error:
            if timer.expired():
                raise DeadlineExceededError("deadline exceeded before inference finished") from error
            raise
        finally:
            self._queue.remove(entry)

    def claim(self) -> bool:
        """Take the slot of the reservation for an item, and return whether it was free.

        `submit` or `drop` then returns it.
        """
        had_slot, self._has_slot = self._has_slot, False
        return had_slot

    def drop(self) -> None:
        """Return the slot of an item that will not come."""
        self._queue.release()

    def submit(self, item: Item, *, is_first: bool) -> QueueItem[Item, Result]:
        """Queue an item, the first one in the slot that `claim` took; return its entry with its future.

        Raises ServiceUnavailable if the batcher is closed.
        """
        if is_first:
            self._queue.release()
        return self._add(item, self.deadline)
