"""Clients that stop sending after their request and still read, in one process and with two HTTP workers."""

import socket
import time
from collections.abc import Iterator

import pytest

from resnet_service.settings import Settings
from tests.support.http import Client, connected, post, send_only
from tests.support.images import encode, make_image
from tests.support.server import Running, serving

GET = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = encode(make_image(1200, 900), "PNG")
"""More than one read of a socket, so that a part of it stays there until the service reads the body."""


@pytest.fixture(scope="module", params=[0, 2], ids=["one process", "two workers"])
def default_server(request: pytest.FixtureRequest) -> Iterator[Running]:
    """Yield a server with the default settings."""
    with serving(Settings(model="cifar10", workers=request.param)) as running:
        yield running


@pytest.fixture(scope="module", params=[0, 2], ids=["one process", "two workers"])
def strict_server(request: pytest.FixtureRequest) -> Iterator[Running]:
    """Yield a server that takes each end of the client's data for a disconnect."""
    with serving(Settings(model="cifar10", workers=request.param, half_close_s=0)) as running:
        yield running


def half_close(client: Client) -> None:
    client.socket.shutdown(socket.SHUT_WR)


def cancelled_images(server: Running) -> float:
    return server.metric("inference_images_total", outcome="cancelled")


@pytest.mark.parametrize("size", ["GET", "small", "large"])
def test_half_closed_clients_get_their_responses(default_server: Running, jpeg: bytes, size: str) -> None:
    """Each of 20 clients that stop sending right after their request gets 200 and then the end."""
    request = {"GET": GET, "small": post(jpeg), "large": post(LARGE)}[size]
    for _ in range(20):
        with connected(default_server.url) as client:
            client.send(request)
            half_close(client)
            assert client.answer()[0] == 200
            assert client.is_closed()


def test_half_closed_client_waits_for_device(default_server: Running, jpeg: bytes) -> None:
    """The response may take longer than the time in which a client may stop sending."""
    server = default_server
    with connected(server.url) as client, server.runtime.held():
        client.send(post(jpeg))
        half_close(client)
        assert server.runtime.begun.acquire(timeout=30)
        released_at = time.monotonic() + 2 * server.service.settings.half_close_s
        server.wait_for(lambda: time.monotonic() > released_at)
        server.runtime.release()
        assert client.answer()[0] == 200


def test_half_close_in_body_is_a_disconnect(default_server: Running, jpeg: bytes) -> None:
    """A request whose body can never be complete gets no response, and is counted with status 499."""
    labels = {"route": "/predict", "status": "499"}
    before = default_server.metric("inference_request_seconds_count", **labels)
    with connected(default_server.url) as client:
        client.send(post(jpeg)[:-1])
        half_close(client)
        assert client.is_closed()
    default_server.wait_for(
        lambda: default_server.metric("inference_request_seconds_count", **labels) == before + 1
    )


def test_late_close_cancels_request(default_server: Running, jpeg: bytes) -> None:
    """A client that closes its connection while it waits has given up, so its image is cancelled."""
    server, cancelled = default_server, cancelled_images(default_server)
    with server.runtime.held():
        with connected(server.url) as client:
            client.send(post(jpeg))
            assert server.runtime.begun.acquire(timeout=30)
            closed_at = time.monotonic() + 1.5 * server.service.settings.half_close_s
            server.wait_for(lambda: time.monotonic() > closed_at)
        server.wait_for(lambda: cancelled_images(server) == cancelled + 1)


def test_without_half_close_each_close_cancels_request(strict_server: Running, jpeg: bytes) -> None:
    """With half_close_s=0, a client that stops sending at once is taken for one that has gone."""
    server, cancelled = strict_server, cancelled_images(strict_server)
    with server.runtime.held(), connected(server.url) as client:
        client.send(post(jpeg))
        assert server.runtime.begun.acquire(timeout=30)
        half_close(client)
        assert client.is_closed()
        server.wait_for(lambda: cancelled_images(server) == cancelled + 1)


def test_long_half_close_answers_each_client(jpeg: bytes) -> None:
    """With a long half_close_s, a client may stop sending at any time before its response."""
    with (
        serving(Settings(model="cifar10", half_close_s=600)) as server,
        connected(server.url) as client,
        server.runtime.held(),
    ):
        client.send(post(jpeg))
        assert server.runtime.begun.acquire(timeout=30)
        half_close(client)
        server.runtime.release()
        assert client.answer()[0] == 200


def test_abandoned_request_that_waited_unread_is_not_run(jpeg: bytes) -> None:
    """If a client gives up while its body waits in the socket, the image never reaches the device."""
    settings = Settings(model="cifar10", max_concurrency=1, half_close_s=0.01)
    with serving(settings) as server:
        images = server.metric("inference_batch_size_sum")
        labels = {"route": "/predict", "status": "499"}
        with server.runtime.held(), connected(server.url) as first:
            first.send(post(jpeg))
            assert server.runtime.begun.acquire(timeout=30)
            second = send_only(server, LARGE)
            closed_at = time.monotonic() + 0.1
            server.wait_for(lambda: time.monotonic() > closed_at)
            second.close()
            server.runtime.release()
            assert first.answer()[0] == 200
            server.wait_for(lambda: server.metric("inference_request_seconds_count", **labels) == 1)
        assert server.metric("inference_batch_size_sum") - images == 1
