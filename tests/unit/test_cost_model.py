"""The model of a batch's duration: what it learns, and that noise does not make it absurd."""

import pytest

from resnet_service.batching.cost_model import BatchCostModel


def test_a_device_that_slows_down_is_noticed_at_the_size_it_runs() -> None:
    """Where full batches come to take four times as long, so do the estimates for them, and for others."""
    duration = BatchCostModel()
    for n in (1, 2, 4):
        duration.observe(n, 0.002 + 0.019 * n)
    for _ in range(60):
        duration.observe(4, 4 * 0.078)
    assert duration.seconds(4) == pytest.approx(4 * 0.078, rel=0.06)
    assert duration.seconds(1) == pytest.approx(4 * 0.021, rel=0.3)


def test_small_batches_do_not_wipe_out_what_large_ones_taught() -> None:
    """After a thousand single items the time of a large batch is still known."""
    duration = BatchCostModel()
    for n in (1, 2, 4, 8, 16, 32):
        duration.observe(n, 0.010 + 0.002 * n)
    for _ in range(1000):
        duration.observe(1, 0.012)
    assert duration.seconds(32) == pytest.approx(0.074)


def test_knows_nothing_at_first() -> None:
    """Before any batch the estimate is 0, so that nobody is rejected on a guess."""
    assert BatchCostModel().seconds(8) == 0


def test_learns_a_line() -> None:
    """From batches that take 10 ms and 2 ms an item it estimates sizes it has not seen."""
    duration = BatchCostModel()
    for n in (1, 2, 4, 8, 16):
        duration.observe(n, 0.010 + 0.002 * n)
    assert duration.seconds(32) == pytest.approx(0.074)


def test_one_size_only() -> None:
    """After one size, smaller batches cost the same and larger ones in proportion."""
    duration = BatchCostModel()
    duration.observe(4, 0.4)
    assert [duration.seconds(n) for n in (1, 4, 8)] == pytest.approx([0.4, 0.4, 0.8])


def test_never_falls_with_size() -> None:
    """Noise that makes a larger batch seem faster does not tilt the line downwards or below zero."""
    duration = BatchCostModel()
    duration.observe(1, 0.5)
    duration.observe(32, 0.1)
    assert duration.seconds(32) >= duration.seconds(1) > 0


def test_follows_a_change() -> None:
    """When the device slows down for good, the estimate follows within some tens of batches."""
    duration = BatchCostModel()
    for seconds in [0.1] * 100 + [0.4] * 60:
        duration.observe(8, seconds)
    assert duration.seconds(8) == pytest.approx(0.4, rel=0.06)
