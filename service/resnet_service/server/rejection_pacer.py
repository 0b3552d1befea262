"""Delay rejections, so that clients that retry at once do not take the time of the event loop."""

import asyncio
import math
from collections.abc import Callable
from typing import Final

from resnet_service.batching import Lane
from resnet_service.errors import OverloadedError
from resnet_service.inference.engine import Engine

_REJECTIONS_PER_S: Final = 100
_MAX_REJECTION_DELAY_S: Final = 20.0
_MIN_MAX_DELAY_S: Final = 1.0
"""A rejection is delayed for so long even if its request may take less time."""
_CHECK_INTERVAL_S: Final = 0.5
"""Time between two checks whether a request that is delayed can be accepted."""


class RejectionPacer:
    """Delays rejections beyond a rate: clients that retry at once would take all the time of the event loop.

    With 4,000 such clients and 1,540 rejections per second, 61 of 207 requests per second were classified.
    With 653 KB, it was 56 to 60 per second with 150 rejections, and 79 to 83 with 60.
    """

    def __init__(self) -> None:
        self._next_at = -math.inf

    def next_delay(self, now: float) -> float:
        """Return the seconds by which to delay the next rejection: 0 up to the rate, counted over one second.

        `now` is a time in seconds on any steady clock.
        """
        due_at = min(max(self._next_at, now - 1), now + _MAX_REJECTION_DELAY_S)
        self._next_at = due_at + 1 / _REJECTIONS_PER_S
        return max(0.0, due_at - now)

    async def wait(self, is_overloaded: Callable[[], bool], max_delay_s: float) -> None:
        """Wait for the delay of the next rejection, or until `is_overloaded` returns false.

        The delay is at most `max_delay_s` seconds.
        """
        time = asyncio.get_running_loop().time
        end = time() + min(self.next_delay(time()), max_delay_s)
        while (left := end - time()) > 0 and is_overloaded():  # noqa: ASYNC110 - no event tells when
            await asyncio.sleep(min(left, _CHECK_INTERVAL_S))

    async def delay(self, engine: Engine, deadline: float, lane: Lane) -> None:
        """Wait before a request is rejected, or until `engine` can accept it.

        `deadline` is that of the request on the event loop's clock. Raises OverloadedError if it passes.
        """
        time = asyncio.get_running_loop().time
        max_delay_s = max(deadline - time(), _MIN_MAX_DELAY_S)
        await self.wait(lambda: engine.is_overloaded(deadline - time(), lane), max_delay_s)
        if time() >= deadline:
            raise OverloadedError("the deadline passed before the request was accepted", "deadline", 1.0)
