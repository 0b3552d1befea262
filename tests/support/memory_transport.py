"""Drive an asyncio protocol in memory: a transport without a socket, and an event loop with its own clock."""

import asyncio
import json
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Any

_HIGH_WATER_BYTES = 65_536


class ManualClockLoop(asyncio.SelectorEventLoop):
    """An event loop that runs only within `settle` and whose time passes only by `advance`."""

    def __init__(self) -> None:
        self._now_s = 1_000.0
        self._calls_since_check = 0
        super().__init__()

    def time(self) -> float:
        return self._now_s

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        self._calls_since_check += 1
        return super().call_soon(callback, *args, context=context)

    def settle(self) -> None:
        """Run callbacks, tasks and due timers until all of them wait."""
        self._calls_since_check = 1
        while self._calls_since_check:
            super().call_soon(self.stop)
            self._calls_since_check = 0
            self.run_forever()

    def advance(self, seconds: float) -> None:
        """Let time pass, and run the timers that are due. Timers that they start begin at the new time."""
        self._now_s += seconds
        self.settle()


@dataclass(frozen=True)
class Response:
    """A response as the client receives it; header names are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> Any:
        """The body, which is JSON."""
        return json.loads(self.body)


class MemoryTransport(asyncio.Transport):
    """Both ends of a connection: asyncio's socket transport for the protocol, and a client for the test.

    The client reads everything at once; with `client_reads` set to False it reads only by `read`.
    """

    def __init__(self, loop: ManualClockLoop, protocol: asyncio.BufferedProtocol) -> None:
        super().__init__({"peername": ("127.0.0.1", 50_000), "sockname": ("127.0.0.1", 8_000)})
        self.client_reads = True
        self.has_eof = False
        """Whether the client has read the end of the connection."""
        self.is_lost = False
        self._loop = loop
        self._protocol = protocol
        self._incoming = bytearray()
        self._unread = bytearray()
        self._received = bytearray()
        self._is_paused = False
        self._has_incoming_eof = False
        self._is_closing = False
        protocol.connection_made(self)
        loop.settle()

    # The client

    def send(self, data: bytes) -> None:
        """Send data, which arrives in parts of the protocol's size; a closed connection ignores it."""
        self._incoming += data
        self._deliver()
        self._loop.settle()

    def half_close(self) -> None:
        """Stop sending, and continue to read."""
        self._has_incoming_eof = True
        self._deliver()
        self._loop.settle()

    def read(self, size: int) -> None:
        """Read bytes of the response that have not been read yet."""
        was_above = len(self._unread) > _HIGH_WATER_BYTES
        self._received += self._unread[:size]
        del self._unread[:size]
        if was_above and len(self._unread) <= _HIGH_WATER_BYTES:
            self._protocol.resume_writing()
        if self._is_closing and not self._unread:
            self.has_eof = True
            self._lose(None)
        self._loop.settle()

    def responses(self) -> list[Response]:
        """Return the responses since the last call; 100 Continue is one of them."""
        responses = []
        while self._received:
            header_block, _, rest = bytes(self._received).partition(b"\r\n\r\n")
            status_line, *lines = header_block.decode().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            size = int(headers.get("content-length", 0))
            responses.append(Response(int(status_line.split()[1]), headers, rest[:size]))
            self._received = bytearray(rest[size:])
        return responses

    def disconnect(self, error: Exception | None = None) -> None:
        """Close the connection from the client's side; with an error, as a reset does."""
        self._lose(error)
        self._loop.settle()

    def _deliver(self) -> None:
        while self._incoming and not (self._is_paused or self._is_closing):
            buffer = memoryview(self._protocol.get_buffer(-1))
            size = min(len(buffer), len(self._incoming))
            buffer[:size] = self._incoming[:size]
            del self._incoming[:size]
            self._protocol.buffer_updated(size)
        is_eof = self._has_incoming_eof and not (self._is_paused or self._is_closing)
        if is_eof and not self._protocol.eof_received():
            self.close()

    def _lose(self, error: Exception | None) -> None:
        self._is_closing = True
        if not self.is_lost:
            self.is_lost = True
            self._loop.call_soon(self._protocol.connection_lost, error)

    # asyncio.Transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.is_lost:
            return
        if self.client_reads:
            self._received += data
            return
        was_above = len(self._unread) > _HIGH_WATER_BYTES
        self._unread += data
        if not was_above and len(self._unread) > _HIGH_WATER_BYTES:
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return len(self._unread)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_eof = True

    def close(self) -> None:
        self._is_closing = True
        if not self._unread:
            self.has_eof = True
            self._lose(None)

    def abort(self) -> None:
        self._unread.clear()
        self.has_eof = True
        self._lose(None)

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        self._is_paused = False
        self._loop.call_soon(self._deliver)
