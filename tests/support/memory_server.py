"""The server's HTTP protocol classes and a small ASGI application in memory; see memory_transport."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from resnet_service.metrics import Metrics
from resnet_service.server.connection_reader import ConnectionReader
from resnet_service.server.http_protocol import ConnectionRegistry
from tests.support.memory_transport import ManualClockLoop, MemoryTransport

HEADER_TIMEOUT_S = 10.0
BODY_TIMEOUT_S = 30.0
KEEP_ALIVE_S = 60.0
LIMIT = 4
LINGER_S = 2.0
HALF_CLOSE_S = 0.25
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def post(body: bytes, path: str = "/", *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class App:
    """An ASGI application that responds with the size of the body it read; the path selects when.

    /early responds with 415 before it reads the body, /wait reads nothing before `release`, /large responds
    with 1 MB.
    """

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.disconnects = 0
        self.part_sizes: list[int] = []
        """The sizes of the parts of bodies, as they were received."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        if path == "/early":
            await self._respond(send, 415, b"early")
            return
        if path == "/wait":
            await self.release.wait()
        size, more_body = 0, True
        while more_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnects += 1
                return
            size += len(message["body"])
            self.part_sizes.append(len(message["body"]))
            more_body = message["more_body"]
        await self._respond(send, 200, bytes(1_000_000) if path == "/large" else str(size).encode())

    async def _respond(self, send: Any, status: int, body: bytes) -> None:
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class MemoryServer:
    """A server without a socket: `connect` opens a connection to it."""

    def __init__(self, loop: ManualClockLoop) -> None:
        self.loop = loop
        self.app = App()
        self.registry = ConnectionRegistry(Metrics(), LIMIT, HEADER_TIMEOUT_S, BODY_TIMEOUT_S, HALF_CLOSE_S)
        self._config = uvicorn.Config(
            self.app, lifespan="off", log_config=None, ws="none", timeout_keep_alive=int(KEEP_ALIVE_S)
        )
        self._state = ServerState()

    def connect(self) -> MemoryTransport:
        buffer = memoryview(bytearray(ConnectionReader.BUFFER_BYTES))
        protocol = ConnectionReader(
            self.registry,
            buffer,
            config=self._config,
            server_state=self._state,
            app_state={},
            _loop=self.loop,
        )
        return MemoryTransport(self.loop, protocol)

    def rejected(self, reason: str) -> float:
        """Return how many connections were closed for this reason."""
        name = "inference_connections_rejected_total"
        return self.registry.metrics.registry.get_sample_value(name, {"reason": reason}) or 0.0

    def check_rejected(self, client: MemoryTransport, reason: str, status: int) -> str:
        """Check for one error response and the end of the connection; return the response's detail."""
        [response] = client.responses()
        assert response.status == response.problem["status"] == status
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["connection"] == "close"
        assert re.fullmatch("[0-9a-f]{16}", response.headers["x-request-id"])
        kind = {400: "malformed-request", 408: "request-timeout", 431: "headers-too-large"}[status]
        assert response.problem["type"] == f"urn:resnet-service:problem:{kind}"
        assert client.has_eof
        assert not client.is_lost  # the client can still read the response
        self.loop.advance(LINGER_S)
        assert client.is_lost
        assert self.rejected(reason) == 1
        assert self.registry.open == 0
        return str(response.problem["detail"])


@contextmanager
def memory_server() -> Iterator[MemoryServer]:
    """Yield a server; no callback of its event loop may raise."""
    loop = ManualClockLoop()
    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    yield MemoryServer(loop)
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.settle()
    loop.close()
    assert not errors
