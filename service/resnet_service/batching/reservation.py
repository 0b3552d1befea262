"""The place of one request: a slot in the queue, and its turn to be read and run.

The number of requests in progress is bounded; the others wait for their turn, in order of arrival. A request
that waits costs nothing: its body is not read yet. A rejected one would come back at once, and the service
would spend its time on rejections instead of work.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, Generic, Protocol, Self

from resnet_service.batching.queue import BatchResult, Item, Queue, Result
from resnet_service.errors import DeadlineExceededError, ServiceError

_FORGETTING: Final = 0.99
"""Weight of the past for each turn that is passed on: the last 100 turns count, which are several batches."""


class Turns:
    """At most `limit` turns at a time.

    turns = Turns(100)
    await turns.take(deadline)
    turns.give_back()
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._taken = 0
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._passed_on_at: float | None = None  # the last time while others waited
        self._passed_on = self._seconds = 0.0

    @property
    def waiting(self) -> int:
        """Number of requests that wait for their turn."""
        return len(self._waiting)

    def estimate_wait(self) -> float:
        """Estimate the seconds until a request that comes now has its turn, from the rate of recent turns."""
        return len(self._waiting) * self._seconds / self._passed_on if self._passed_on else 0.0

    async def take(self, deadline: float | None) -> None:
        """Wait for a turn. Raises DeadlineExceededError, and the error that `close` is called with."""
        if self._taken < self._limit and not self._waiting:
            self._taken += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = None
        is_taken = False
        try:
            async with asyncio.timeout_at(deadline):
                await turn
            is_taken = True
        except TimeoutError as error:
            raise DeadlineExceededError("deadline exceeded before the request was read") from error
        finally:
            self._waiting.pop(turn, None)
            if not is_taken and turn.done() and not turn.cancelled() and turn.exception() is None:
                self.give_back()  # it was passed on at the same moment

    def give_back(self) -> None:
        """End a turn; the request that has waited longest gets it."""
        if not self._waiting:
            self._taken -= 1
            self._passed_on_at = None
            return
        now = time.perf_counter()
        if self._passed_on_at is not None:
            self._seconds = _FORGETTING * self._seconds + now - self._passed_on_at
            self._passed_on = _FORGETTING * self._passed_on + 1
        self._passed_on_at = now
        turn, _ = self._waiting.popitem(last=False)
        turn.set_result(None)

    def close(self, error: ServiceError) -> None:
        """Fail all requests that wait."""
        for turn in self._waiting:
            turn.set_exception(type(error)(*error.args))
        self._waiting.clear()


class _ReserveSlot(Protocol):
    def __call__(self, deadline: float | None, *, has_turn: bool = False) -> None: ...


class Reservation(Generic[Item, Result]):
    """A slot in the queue and, after `start`, a turn; created by `MicroBatcher.reserve`.

    The first item uses that slot; each further item that runs at the same time takes another one. `deadline`
    applies to all items.

        with batcher.reserve() as reservation:
            await reservation.start()
            data = await read()
            result = await reservation.run(partial(decode, data))
    """

    def __init__(
        self,
        queue: Queue[Item, Result],
        turns: Turns,
        reserve_slot: _ReserveSlot,
        enqueue: Callable[[Item, float | None], Awaitable[BatchResult[Result]]],
        deadline: float | None,
    ) -> None:
        self.deadline = deadline
        self._queue = queue
        self._turns = turns
        self._reserve_slot = reserve_slot
        self._enqueue = enqueue
        self._has_slot = True
        self._has_turn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.suspend()

    def extend(self, seconds: float) -> None:
        """Move the deadline, by the time that the client took."""
        if self.deadline is not None:
            self.deadline += seconds

    async def start(self) -> None:
        """Wait for the request's turn; returns at once if it has it or if no other request waits.

        Raises DeadlineExceededError, ServiceUnavailable if the batcher is closed first and, after `suspend`,
        what `MicroBatcher.reserve` raises.
        """
        if not self._has_slot:
            self._reserve_slot(self.deadline, has_turn=True)  # its body has been read: not worth rejecting
            self._has_slot = True
        if not self._has_turn:
            await self._turns.take(self.deadline)
            self._has_turn = True

    def suspend(self) -> None:
        """Give the slot and the turn to others until the next `start`, because the client is slow."""
        if self._has_slot:
            self._has_slot = False
            self._queue.release()
        if self._has_turn:
            self._has_turn = False
            self._turns.give_back()

    async def run(self, prepare: Callable[[], Awaitable[Item]]) -> BatchResult[Result]:
        """Call `prepare` while a slot is held, queue the item that it returns, and wait for its result.

        Raises what `prepare` raises, what `MicroBatcher.reserve` raises if there is no slot for a further
        item, DeadlineExceededError if the deadline passes first, InferenceError if the runner fails for this
        item, and ServiceUnavailable if the batcher is closed first.
        """
        if self._has_slot:
            self._has_slot = False
        else:
            self._reserve_slot(self.deadline, has_turn=True)
        try:
            item = await prepare()
        finally:
            self._queue.release()
        return await self._enqueue(item, self.deadline)
