"""Rejections beyond a rate are delayed, so that they do not take all the time of the event loop."""

import asyncio

import pytest

from resnet_service.server.rejection_pacer import RejectionPacer


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


def test_delay_ends_when_the_service_is_no_longer_overloaded() -> None:
    """A client that comes at the end of an overload must not wait for the clients that caused it."""
    checks = iter([True, True, False])

    async def wait() -> None:
        pacer, now = RejectionPacer(), asyncio.get_running_loop().time()
        for _ in range(3000):
            pacer.next_delay(now)
        await asyncio.wait_for(pacer.wait(lambda: next(checks), 20.0), timeout=10)

    asyncio.run(wait())
    assert next(checks, None) is None


def test_delay_is_limited_by_the_caller() -> None:
    """A request that may take little time is not delayed for longer."""

    async def wait() -> None:
        pacer, now = RejectionPacer(), asyncio.get_running_loop().time()
        for _ in range(3000):
            pacer.next_delay(now)
        await asyncio.wait_for(pacer.wait(lambda: True, 0.01), timeout=10)

    asyncio.run(wait())
