"""The admission of one request: a slot in the queue, and a permit to be read and run.

The number of permits is the limit on concurrent requests; the others wait, in order of arrival. A request
that waits costs nothing: its body is not read yet. A rejected one would come back at once, and the service
would spend its time on rejections instead of work.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, Protocol, Self

from resnet_service.batching.lanes import Lane, Lanes, entries_ahead
from resnet_service.batching.queue import BatchResult, Item, Queue, QueueItem, Result
from resnet_service.errors import DeadlineExceededError, ServiceError

_FORGETTING: Final = 0.99
"""Weight of the past for each permit that is passed on: the last 100 count, which are several batches."""


@dataclass(eq=False)
class _Waiter:
    permit: asyncio.Future[None]
    lane: Lane


class ConcurrencyLimiter:
    """A semaphore with `limit` permits and two lanes, which estimates how long a wait takes.

    Bulk requests have at most half of the permits, because each may keep its own for long.

        limiter = ConcurrencyLimiter(100)
        await limiter.acquire(deadline, Lane.BULK)
        limiter.release(Lane.BULK)
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._bulk_limit = max(1.0, limit / 2)
        self._taken = dict.fromkeys(Lane, 0)
        self._waiting: Lanes[_Waiter] = Lanes()
        self._passed_on_at: float | None = None  # the last time while others waited
        self._passed_on = self._seconds = 0.0

    @property
    def waiting(self) -> int:
        """Number of requests that wait for a permit."""
        return len(self._waiting)

    def count_waiting(self, lane: Lane) -> int:
        """Return the number of requests of a lane that wait for a permit."""
        return self._waiting.count(lane)

    @property
    def is_half_free(self) -> bool:
        """Whether less than half of the permits are taken."""
        return 2 * sum(self._taken.values()) < self._limit and not self._waiting

    def estimate_wait(self, lane: Lane) -> float:
        """Estimate the seconds until a request that comes now has a permit, from their recent rate."""
        ahead = entries_ahead(lane, *map(self._waiting.count, Lane))
        return ahead * self._seconds / self._passed_on if self._passed_on else 0.0

    def try_acquire(self, lane: Lane) -> bool:
        """Take a permit if that needs no wait, and return whether it was taken."""
        if not self._has_permit(lane) or self._waiting.count(lane):
            return False
        self._taken[lane] += 1
        return True

    async def acquire(self, deadline: float | None, lane: Lane) -> None:
        """Wait for a permit. Raises DeadlineExceededError, and the error that `close` is called with."""
        if self.try_acquire(lane):
            return
        permit: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(permit, lane)
        self._waiting.add(waiter, lane)
        is_taken = False
        try:
            async with asyncio.timeout_at(deadline):
                await permit
            is_taken = True
        except TimeoutError as error:
            raise DeadlineExceededError("deadline exceeded before the request was read") from error
        finally:
            self._waiting.remove(waiter)
            if not is_taken and permit.done() and not permit.cancelled() and permit.exception() is None:
                self.release(lane)  # it was passed on at the same moment

    def release(self, lane: Lane) -> None:
        """Return a permit; the next request that waits gets it, in the order of `Lanes`."""
        self._taken[lane] -= 1
        allow_bulk = self._has_permit(Lane.BULK)
        if not self._waiting:
            self._passed_on_at = None
        if not self._can_pass_on(allow_bulk):
            return
        now = time.perf_counter()
        if self._passed_on_at is not None:
            self._seconds = _FORGETTING * self._seconds + now - self._passed_on_at
            self._passed_on = _FORGETTING * self._passed_on + 1
        self._passed_on_at = now
        while self._can_pass_on(allow_bulk):
            waiter = self._waiting.pop(allow_bulk=allow_bulk)
            if not waiter.permit.done():  # cancelled in this iteration of the event loop
                self._taken[waiter.lane] += 1
                waiter.permit.set_result(None)
                return

    def close(self, error: ServiceError) -> None:
        """Fail all requests that wait."""
        for waiter in self._waiting:
            if not waiter.permit.done():
                waiter.permit.set_exception(type(error)(*error.args))
        self._waiting.clear()

    def _can_pass_on(self, allow_bulk: bool) -> bool:
        return bool(self._waiting if allow_bulk else self._waiting.count(Lane.INTERACTIVE))

    def _has_permit(self, lane: Lane) -> bool:
        is_bulk_full = lane is Lane.BULK and self._taken[lane] >= self._bulk_limit
        return sum(self._taken.values()) < self._limit and not is_bulk_full


class _ReserveSlot(Protocol):
    def __call__(self, deadline: float | None, lane: Lane, *, has_permit: bool = False) -> None: ...


class Reservation(Generic[Item, Result]):
    """A slot in the queue and, after `start`, a permit; created by `MicroBatcher.reserve`.

    The first item uses that slot; further items that run at the same time need none. `deadline` and `lane`
    apply to all items.

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
        add: Callable[[Item, float | None, Lane], QueueItem[Item, Result]],
        deadline: float | None,
        lane: Lane,
    ) -> None:
        self.deadline = deadline
        self.lane = lane  # a request may change it, once its body has been read
        self._slot_lane = self._permit_lane = lane
        self._admitted_at = asyncio.get_running_loop().time()
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
        self._admitted_at += seconds
        if self.deadline is not None:
            self.deadline += seconds

    def limit(self, seconds: float) -> None:
        """Let the request take at most `seconds`, and never more than before.

        As with the deadline, the time of `extend` does not count.
        """
        deadline = self._admitted_at + seconds
        self.deadline = deadline if self.deadline is None else min(self.deadline, deadline)

    def try_start(self) -> bool:
        """Start if that needs no wait, directly after `MicroBatcher.reserve`, and return whether it did."""
        self._has_permit = self._limiter.try_acquire(self._permit_lane)
        return self._has_permit

    async def start(self) -> None:
        """Wait until the request may be read and run; returns at once below the limit on concurrent requests.

        Raises DeadlineExceededError, ServiceUnavailable if the batcher is closed first and, after `suspend`,
        what `MicroBatcher.reserve` raises.
        """
        if not self._has_slot:
            # Its body has been read: it is not worth rejecting.
            self._slot_lane = self.lane
            self._reserve_slot(self.deadline, self._slot_lane, has_permit=True)
            self._has_slot = True
        if not self._has_permit:
            self._permit_lane = self.lane
            await self._limiter.acquire(self.deadline, self._permit_lane)
            self._has_permit = True

    def suspend(self) -> None:
        """Give the slot and the permit to others until the next `start`, because the client is slow."""
        if self._has_slot:
            self._has_slot = False
            self._queue.release(self._slot_lane)
        if self._has_permit:
            self._has_permit = False
            self._limiter.release(self._permit_lane)

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
        self._queue.release(self._slot_lane)

    def submit(self, item: Item, *, is_first: bool) -> QueueItem[Item, Result]:
        """Queue an item, the first one in the slot that `claim` took; return its entry with its future.

        Raises ServiceUnavailable if the batcher is closed.
        """
        if is_first:
            self._queue.release(self._slot_lane)
        return self._add(item, self.deadline, self.lane)
