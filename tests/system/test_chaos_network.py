"""A service behind a network that delays and loses packets, or that ends."""

import time
from collections.abc import Iterator
from typing import Final

import httpx
import pytest

from tests.support.chaos import ChaosService, chaos_service
from tests.support.http import connected, post
from tests.support.images import encode, make_image
from tests.support.lossy_link import SERVER_ADDRESS, LossyLink, lossy_link
from tests.support.sandbox import wait_for

pytestmark = pytest.mark.exclusive  # the limits on time are short

_LATENCY_S: Final = 0.05
_LOSS: Final = 0.05
_READ_TIMEOUT_S: Final = 10
"""Longer than several retransmissions of a lost packet."""


@pytest.fixture(scope="module")
def link() -> Iterator[LossyLink]:
    """Yield a link without latency and loss."""
    with lossy_link() as running:
        yield running


@pytest.fixture(scope="module")
def service(link: LossyLink) -> Iterator[ChaosService]:
    """Yield a service behind the link."""
    flags = ("--host", SERVER_ADDRESS, "--read-timeout-s", str(_READ_TIMEOUT_S))
    with chaos_service(*flags, prefix=link.prefix) as running:
        yield running


def test_lost_and_late_packets_delay_requests(link: LossyLink, service: ChaosService) -> None:
    """With 50 ms each way and 5 % of the packets lost, every image is classified."""
    image = encode(make_image(800, 600))
    link.latency_s, link.loss = _LATENCY_S, _LOSS
    started_at = time.monotonic()
    try:
        service.assert_normal(*[image] * 12)
    finally:
        link.latency_s = link.loss = 0.0
    round_trips = 4  # two requests for probes, each with a connection
    assert time.monotonic() - started_at > round_trips * 2 * _LATENCY_S
    service.assert_normal(image)


def test_client_whose_network_ends_is_forgotten(link: LossyLink, service: ChaosService) -> None:
    """The half of an upload is dropped after the read timeout, and its memory is free again."""
    image = encode(make_image(800, 600))
    link.latency_s = link.loss = 0.0
    with connected(service.url) as client:
        client.send(post(image)[: -len(image) // 2])
        wait_for(lambda: service.metric("inference_upload_bytes") > 0)
        link.loss = 1.0
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{service.url}/readyz", timeout=_READ_TIMEOUT_S + 0.5)
        link.loss = 0.0
        wait_for(lambda: service.metric("inference_upload_bytes") == 0)
    assert service.metric("inference_in_flight") == 0
    service.assert_normal(image)
