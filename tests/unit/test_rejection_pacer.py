"""Rejections beyond a rate are delayed, so that they do not take all the time of the event loop."""

import asyncio
import math
from dataclasses import dataclass

import pytest

from resnet_service.batching import Lane
from resnet_service.errors import OverloadedError
from resnet_service.server.rejection_pacer import RejectionPacer

LANE = Lane.INTERACTIVE


@dataclass(eq=False)
class Queue:
    """An engine with a number of free places, in which a request waits for `wait_s`."""

    free: int = 0
    wait_s: float = 0.0

    def admission_wait(self, _: Lane) -> float:
        """Return infinity if no place is free."""
        return self.wait_s if self.free else math.inf

    async def request(self, pacer: RejectionPacer, timeout_s: float = 60.0, lane: Lane = LANE) -> bool:
        """Send a request, and return whether it got a place."""
        if self.admission_wait(lane) > timeout_s:
            await pacer.delay(self, asyncio.get_running_loop().time() + timeout_s, lane)
        if self.admission_wait(lane) > timeout_s:
            return False
        self.free -= 1
        return True


def busy_pacer(delay_s: float = 20.0) -> RejectionPacer:
    """Return a pacer that delays the next rejection, at least for `delay_s`."""
    pacer, now = RejectionPacer(), asyncio.get_running_loop().time()
    for _ in range(100 + round(100 * delay_s)):
        pacer.next_delay(now)
    return pacer


def test_rejections_beyond_100_per_second_are_delayed_by_at_most_20_seconds() -> None:
    """Of those that come at the same time, the first 100 are not; each further one waits 10 ms longer."""
    pacer = RejectionPacer()
    assert not any(pacer.next_delay(now=50.0) for _ in range(100))
    delays = [pacer.next_delay(now=50.0) for _ in range(3000)]
    assert delays[:3] == pytest.approx([0, 0.01, 0.02])
    assert delays[-1] == max(delays) == pytest.approx(20)


def test_rejections_are_not_delayed_after_a_pause() -> None:
    """The delays were for the second before it."""
    pacer = RejectionPacer()
    for _ in range(200):
        pacer.next_delay(now=50.0)
    assert pacer.next_delay(now=50.5) == pytest.approx(0.5)
    assert pacer.next_delay(now=53.0) == 0


def test_newest_of_the_delayed_requests_get_free_places() -> None:
    """The older ones have less time left, and a place that was given to them could be wasted."""

    async def run() -> None:
        pacer, queue = busy_pacer(), Queue()
        requests = [asyncio.create_task(queue.request(pacer)) for _ in range(5)]
        await asyncio.sleep(0)
        queue.free = 3
        assert await asyncio.wait_for(asyncio.gather(*requests[2:]), timeout=10) == [True] * 3
        assert queue.free == 0
        assert not any(request.done() for request in requests[:2])
        for request in requests[:2]:
            request.cancel()

    asyncio.run(run())


def test_request_with_little_time_does_not_keep_places_from_others() -> None:
    """The newest one would get its response too late; the one before it takes the place."""

    async def run() -> None:
        pacer, queue = busy_pacer(), Queue(wait_s=30.0)
        long = asyncio.create_task(queue.request(pacer, timeout_s=60.0))
        await asyncio.sleep(0)
        short = asyncio.create_task(queue.request(pacer, timeout_s=20.0))
        await asyncio.sleep(0)
        queue.free = 1
        assert await asyncio.wait_for(long, timeout=10)
        assert not short.done()
        short.cancel()

    asyncio.run(run())


def test_last_place_is_for_an_interactive_request() -> None:
    """A bulk request that came first waits on."""

    async def run() -> None:
        pacer, queue = busy_pacer(), Queue()
        bulk = asyncio.create_task(queue.request(pacer, lane=Lane.BULK))
        await asyncio.sleep(0)
        interactive = asyncio.create_task(queue.request(pacer))
        await asyncio.sleep(0)
        queue.free = 1
        assert await asyncio.wait_for(interactive, timeout=10)
        assert not bulk.done()
        bulk.cancel()

    asyncio.run(run())


def test_request_is_rejected_at_the_end_of_its_delay() -> None:
    """The service is still overloaded then."""

    async def run() -> None:
        pacer = busy_pacer(delay_s=0.05)
        assert not await asyncio.wait_for(Queue().request(pacer), timeout=10)

    asyncio.run(run())


def test_delay_ends_with_the_deadline_but_not_within_a_second() -> None:
    """A client that allows little time would otherwise come back at once."""

    async def run() -> None:
        pacer, time = busy_pacer(), asyncio.get_running_loop().time
        started = time()
        with pytest.raises(OverloadedError, match="deadline"):
            await asyncio.wait_for(Queue().request(pacer, timeout_s=0.01), timeout=10)
        assert time() - started >= 1

    asyncio.run(run())
