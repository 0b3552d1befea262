"""The timing record of a request: stages, images, and the values derived from them."""

import re

import pytest

from resnet_service.inference.request_timing import RequestTiming


def test_stages_of_a_request_have_durations_and_an_order() -> None:
    """Intervals are in the order of the stages, and a stage that did not run has no duration."""
    timing = RequestTiming(started=10.0)
    timing.record("decode", 10.5, 11.5)
    timing.record("read", 10.0, 10.5)
    assert list(timing.intervals()) == [("read", 10.0, 10.5), ("decode", 10.5, 11.5)]
    assert timing.seconds("decode") == 1.0
    assert timing.seconds("device") == 0.0
    assert timing.has_stages


def test_images_extend_the_stages_of_their_request() -> None:
    """A stage lasts from its first start to its last end over all images; each image keeps its own."""
    timing = RequestTiming(started=0.0)
    timing.record("read", 0.0, 1.0)
    first, second = timing.image(), timing.image()
    first.record("device", 1.0, 3.0)
    second.record("device", 2.0, 6.0)
    assert (first.seconds("device"), second.seconds("device")) == (2.0, 4.0)
    assert timing.seconds("device") == 5.0
    assert sorted(timing.observations()) == [("device", 2.0), ("device", 4.0), ("read", 1.0)]


def test_server_timing_lists_stages_and_total_in_milliseconds() -> None:
    """The header has one entry for each stage that ran, and the total."""
    timing = RequestTiming()
    timing.record("read", 1.0, 1.0025)
    assert re.fullmatch(r"read;dur=2\.50, total;dur=\d+\.\d\d", timing.server_timing())


@pytest.mark.parametrize("with_image", [False, True])
def test_request_without_stages_has_no_entries(with_image: bool) -> None:
    """Requests to other routes, and images that failed before they were decoded, have no stages."""
    timing = RequestTiming()
    if with_image:
        timing.image()
    assert not timing.has_stages
    assert not list(timing.intervals())
