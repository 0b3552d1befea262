"""The cost model of batches, and the warm-up."""

import pytest

from resnet_service.batching import warm_up
from resnet_service.batching.cost_model import BatchCostModel
from tests.support.batching import run_async


def test_estimate_is_zero_before_the_first_batch() -> None:
    """Without a measurement no item is rejected because of an estimate."""
    assert BatchCostModel().seconds(8) == 0


def test_estimate_extrapolates_a_line() -> None:
    """Batches that take 10 ms plus 2 ms per item predict the time of sizes that did not run."""
    model = BatchCostModel()
    for n in (1, 2, 4, 8, 16):
        model.observe(n, 0.010 + 0.002 * n)
    assert model.seconds(32) == pytest.approx(0.074)


def test_estimate_from_a_single_size() -> None:
    """After one size, smaller batches cost the same and larger ones are proportional."""
    model = BatchCostModel()
    model.observe(4, 0.4)
    assert [model.seconds(n) for n in (1, 4, 8)] == pytest.approx([0.4, 0.4, 0.8])


def test_estimate_does_not_decrease_with_size() -> None:
    """Noise that makes a larger batch look faster does not tilt the line downwards or below zero."""
    model = BatchCostModel()
    model.observe(1, 0.5)
    model.observe(32, 0.1)
    assert model.seconds(32) >= model.seconds(1) > 0


def test_estimate_follows_a_slower_device() -> None:
    """If the device slows down permanently, the estimate follows within 60 batches."""
    model = BatchCostModel()
    for seconds in [0.1] * 100 + [0.4] * 60:
        model.observe(8, seconds)
    assert model.seconds(8) == pytest.approx(0.4, rel=0.06)


def test_slowdown_at_one_size_raises_all_estimates() -> None:
    """If full batches take four times as long, the estimates for other sizes rise as well."""
    model = BatchCostModel()
    for n in (1, 2, 4):
        model.observe(n, 0.002 + 0.019 * n)
    for _ in range(60):
        model.observe(4, 4 * 0.078)
    assert model.seconds(4) == pytest.approx(4 * 0.078, rel=0.06)
    assert model.seconds(1) == pytest.approx(4 * 0.021, rel=0.3)


def test_small_batches_do_not_change_estimates_of_large_ones() -> None:
    """After a thousand single items, the time of a large batch is still known."""
    model = BatchCostModel()
    for n in (1, 2, 4, 8, 16, 32):
        model.observe(n, 0.010 + 0.002 * n)
    for _ in range(1000):
        model.observe(1, 0.012)
    assert model.seconds(32) == pytest.approx(0.074)


@run_async
async def test_warm_up_runs_every_size_up_to_the_largest_batch() -> None:
    """Sizes double up to the largest batch; the faster of two batches of a size counts, after one more."""
    ran: list[int] = []

    async def run(size: int) -> float:
        ran.append(size)
        return {1: 0.1, 2: 0.3, 3: 0.2}[ran.count(size)]

    seconds = await warm_up(run, 24)
    assert seconds == dict.fromkeys((1, 2, 4, 8, 16, 24), 0.2)
    assert set(ran) == set(seconds)
