"""Limit how many images of one request are decoded, and are queued or run, at the same time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from resnet_service.errors import DeadlineExceededError

Item = TypeVar("Item")
Result = TypeVar("Result")


class ImageLimits:
    """The limits of one request with several images.

    Within a priority, decoders and queue are first come, first served, so that an image of another request
    would wait for all of them. With an image for each decoding thread and one batch, a request alone still
    uses all of both.

        limits = ImageLimits(decoding=2, queued=4)
        result = await limits.run(prepare, reservation.run, reservation.deadline)
    """

    def __init__(self, decoding: int, queued: int) -> None:
        self.total = 2 * queued
        """Images to start at a time: while one batch is queued or runs, the next one is decoded."""
        self._decoding = asyncio.Semaphore(decoding)
        self._queued = asyncio.Semaphore(queued)

    async def run(
        self,
        prepare: Callable[[], Awaitable[Item]],
        run: Callable[[Callable[[], Awaitable[Item]]], Awaitable[Result]],
        deadline: float | None,
    ) -> Result:
        """Return the result of `run`, which awaits its argument and then queues the item.

        Raises what both raise, and DeadlineExceededError if the deadline, a time of the event loop, passes
        first.
        """
        is_queued = False

        async def prepare_within_limits() -> Item:
            nonlocal is_queued
            try:
                async with asyncio.timeout_at(deadline) as timer, self._decoding:
                    item = await prepare()
                async with asyncio.timeout_at(deadline) as timer:
                    await self._queued.acquire()
            except TimeoutError as error:
                if timer.expired():
                    raise DeadlineExceededError("deadline exceeded before inference started") from error
                raise
            is_queued = True
            return item

        try:
            return await run(prepare_within_limits)
        finally:
            if is_queued:
                self._queued.release()
