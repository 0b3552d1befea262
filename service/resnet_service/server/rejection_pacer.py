"""Delay rejections, so that clients that retry at once do not take the time of the event loop."""

import asyncio
import math
from typing import Final, Protocol

from resnet_service.batching import Lane
from resnet_service.errors import OverloadedError

_REJECTIONS_PER_S: Final = 100
_MAX_REJECTION_DELAY_S: Final = 20.0
_MIN_MAX_DELAY_S: Final = 1.0
"""A rejection is delayed for so long even if its request may take less time."""
_CHECK_INTERVAL_S: Final = 0.05
"""Time between two checks whether a delayed request can be accepted."""


class AdmittingEngine(Protocol):
    """The part of `Engine` that is needed here."""

    def admission_wait(self, lane: Lane) -> float:
        """Return the seconds that a request must allow, or it is rejected; infinity if always."""
        ...


_Delayed = dict[asyncio.Future[None], float]
"""Requests that are delayed and their deadlines, in order of arrival."""


class RejectionPacer:
    """Delays rejections beyond a rate: clients that retry at once would take all the time of the event loop.

    With 4,000 such clients and 1,540 rejections per second, 61 of 207 requests per second were classified.
    With 653 KB, it was 56 to 60 per second with 150 rejections, and 79 to 83 with 60.

    A request that is delayed is accepted as soon as its engine has a place, the newest one first: those that
    have waited for long have little time left, and would get their response at their deadline or after it.
    One timer looks for all of them: when each had its own, 1,300 took 9 % of the time of the event loop.
    """

    def __init__(self) -> None:
        self._next_at = -math.inf
        self._delayed: dict[tuple[AdmittingEngine, Lane], _Delayed] = {}
        self._check: asyncio.Handle | None = None

    def next_delay(self, now: float) -> float:
        """Return the seconds by which to delay the next rejection: 0 up to the rate, counted over one second.

        `now` is a time in seconds on any steady clock.
        """
        due_at = min(max(self._next_at, now - 1), now + _MAX_REJECTION_DELAY_S)
        self._next_at = due_at + 1 / _REJECTIONS_PER_S
        return max(0.0, due_at - now)

    async def delay(self, engine: AdmittingEngine, deadline: float, lane: Lane) -> None:
        """Wait before a request is rejected, or until `engine` can accept it, which the caller then tries.

        `deadline` is that of the request on the event loop's clock. Raises OverloadedError if it passes.
        """
        time = asyncio.get_running_loop().time
        now = time()
        delay_s = min(self.next_delay(now), max(deadline - now, _MIN_MAX_DELAY_S))
        if delay_s > 0:
            await self._wait(engine, deadline, lane, delay_s)
        if time() >= deadline:
            raise OverloadedError("the deadline passed before the request was accepted", "deadline", 1.0)

    async def _wait(self, engine: AdmittingEngine, deadline: float, lane: Lane, delay_s: float) -> None:
        accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        delayed = self._delayed.setdefault((engine, lane), {})
        delayed[accepted] = deadline
        if self._check is None:
            self._check = asyncio.get_running_loop().call_later(_CHECK_INTERVAL_S, self._accept)
        try:
            async with asyncio.timeout(delay_s):
                await accepted
        except TimeoutError:
            pass  # it is rejected now
        finally:
            del delayed[accepted]
            if not delayed:
                del self._delayed[engine, lane]

    def _accept(self) -> None:
        """Accept one request for each engine that has a place, and look again: at once for more of them."""
        loop = asyncio.get_running_loop()
        engines: set[AdmittingEngine] = set()
        for engine, lane in sorted(self._delayed, key=lambda key: key[1]):
            accepted = None if engine in engines else self._newest(engine, lane, loop.time())
            if accepted is not None:
                accepted.set_result(None)
                engines.add(engine)
        if engines:
            self._check = loop.call_soon(self._accept)  # those that were accepted take their places before
        elif self._delayed:
            self._check = loop.call_later(_CHECK_INTERVAL_S, self._accept)
        else:
            self._check = None

    def _newest(self, engine: AdmittingEngine, lane: Lane, now: float) -> asyncio.Future[None] | None:
        """Return the newest request that the engine would accept now; None if it has no place for any."""
        wait_s = engine.admission_wait(lane)
        if wait_s == math.inf:
            return None
        for accepted, deadline in reversed(self._delayed[engine, lane].items()):
            if deadline - now >= wait_s and not accepted.done():
                return accepted
        return None
