"""The health service over gRPC, with a client that does not read what it gets."""

import asyncio
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from resnet_service.errors import ServiceUnavailable
from resnet_service.server.rpc.health import HealthServicer
from tests.support.batching import run_async, run_pending_tasks

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Backend:
    """A backend whose readiness the test sets."""

    is_ready = True

    async def check_ready(self) -> None:
        if not self.is_ready:
            raise ServiceUnavailable("not ready")


class Peer:
    """The context of one call: its client reads while `reads` is set."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.received: list[int] = []

    async def read(self) -> bytes:
        return b""

    async def write(self, data: bytes) -> None:
        await self.reads.wait()
        self.received.append(health_pb2.HealthCheckResponse.FromString(data).status)


def method(servicer: HealthServicer, name: str) -> Any:
    """Return the function that handles a method."""
    details = SimpleNamespace(method=f"/grpc.health.v1.Health/{name}", invocation_metadata=())
    handler: Any = servicer.handlers().service(details)
    return handler.stream_unary or handler.stream_stream


async def check(servicer: HealthServicer) -> int:
    data = await method(servicer, "Check")(None, Peer())
    status: int = health_pb2.HealthCheckResponse.FromString(data).status
    return status


@run_async
async def test_stream_whose_client_does_not_read_blocks_nothing() -> None:
    """Checks respond, another stream sees each change, and the drain ends both streams."""
    backend = Backend()
    servicer = HealthServicer(backend)  # type: ignore[arg-type]
    servicer.start()
    stuck, reader = Peer(), Peer()
    reader.reads.set()
    streams = [asyncio.create_task(method(servicer, "Watch")(None, peer)) for peer in (stuck, reader)]
    await run_pending_tasks()
    assert await check(servicer) == SERVING
    backend.is_ready = False
    assert await check(servicer) == NOT_SERVING
    await run_pending_tasks()
    backend.is_ready = True
    assert await check(servicer) == SERVING
    await run_pending_tasks()
    servicer.begin_drain()
    await streams[1]
    assert reader.received == [SERVING, NOT_SERVING, SERVING, NOT_SERVING]
    assert await check(servicer) == NOT_SERVING
    stuck.reads.set()
    await streams[0]
    assert stuck.received[-1] == NOT_SERVING


@run_async
async def test_streams_are_limited_in_number() -> None:
    """The next stream after a hundred gets RESOURCE_EXHAUSTED."""
    servicer = HealthServicer(Backend())  # type: ignore[arg-type]
    servicer.start()
    watch, aborted = method(servicer, "Watch"), []

    class Rejected(Peer):
        async def abort(self, code: grpc.StatusCode, _: str) -> None:
            aborted.append(code)
            raise ConnectionAbortedError

    streams = [asyncio.create_task(watch(None, Peer())) for _ in range(100)]
    await run_pending_tasks()
    with pytest.raises(ConnectionAbortedError):
        await watch(None, Rejected())
    assert aborted == [grpc.StatusCode.RESOURCE_EXHAUSTED]
    servicer.begin_drain()
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
