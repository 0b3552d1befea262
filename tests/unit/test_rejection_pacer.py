"""Rejections beyond a rate are delayed, so that they do not take all the time of the event loop."""

import pytest

from resnet_service.server.engine_manager import RejectionPacer


def test_rejections_beyond_200_per_second_are_delayed_by_at_most_10_seconds() -> None:
    """Of those that come at the same time, the first 200 are not; each further one waits 5 ms longer."""
    pacer = RejectionPacer()
    assert not any(pacer.next_delay(now=50.0) for _ in range(200))
    delays = [pacer.next_delay(now=50.0) for _ in range(3000)]
    assert delays[:3] == pytest.approx([0, 0.005, 0.01])
    assert delays[-1] == max(delays) == pytest.approx(10)


def test_rejections_are_not_delayed_after_a_pause() -> None:
    """The delays were for the second before it."""
    pacer = RejectionPacer()
    for _ in range(400):
        pacer.next_delay(now=50.0)
    assert pacer.next_delay(now=50.5) == pytest.approx(0.5)
    assert pacer.next_delay(now=53.0) == 0
