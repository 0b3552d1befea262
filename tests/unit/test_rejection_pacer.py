"""Rejections beyond a rate are delayed, so that they do not take all the time of the event loop."""

import asyncio

import pytest

from resnet_service.server.engine_manager import RejectionPacer


def test_rejections_beyond_200_per_second_are_delayed_by_at_most_10_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of those that come at the same time, the first 200 are not; each further one waits 5 ms longer."""
    delays: list[float] = []

    async def record(seconds: float) -> None:
        delays.append(seconds)

    monkeypatch.setattr("resnet_service.server.engine_manager.asyncio.sleep", record)

    async def reject(count: int) -> None:
        pacer = RejectionPacer()
        for _ in range(count):
            await pacer.pace()

    asyncio.run(reject(200))
    assert delays == []
    asyncio.run(reject(400))
    assert 150 < len(delays) <= 200  # those that came later than 5 ms need no delay
    assert delays[-1] == pytest.approx(1, abs=0.5)
    asyncio.run(reject(5000))
    assert max(delays) == 10
