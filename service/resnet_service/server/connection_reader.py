"""Read from a connection in parts of a chosen size, instead of the 256 KB of uvloop and asyncio."""

import asyncio
from typing import Any, Final, cast

from resnet_service.server.http_protocol import ConnectionRegistry, HTTPConnection

_BODY_BYTES: Final = 262_144
_HEADER_BYTES: Final = 65_536
"""The part of a body that arrives with its headers is in memory while the request waits, perhaps for 20 s:
with 4,000 waiting requests of 653 KB, parts of 256 KB took 1.1 GB."""


class ConnectionReader(asyncio.BufferedProtocol):
    """Passes what arrives on a connection to its `HTTPConnection`, from a buffer that all connections share.

        buffer = memoryview(bytearray(ConnectionReader.BUFFER_BYTES))
        config = uvicorn.Config(app, http=partial(ConnectionReader, registry, buffer))

    The arguments that uvicorn adds are those of `HTTPConnection`.
    """

    BUFFER_BYTES: Final = _BODY_BYTES

    def __init__(self, registry: ConnectionRegistry, buffer: memoryview, **arguments: Any) -> None:
        self._connection = HTTPConnection(registry, **arguments)
        self._buffer = buffer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with a connection."""
        self._connection.connection_made(cast(asyncio.Transport, transport))

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """Return the buffer for the next part: small before a request, large within its body."""
        return self._buffer if self._connection.is_in_body else self._buffer[:_HEADER_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        """Handle a part."""
        self._connection.data_received(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool:
        """Handle the end of what the client sends; return whether the connection stays open."""
        return self._connection.eof_received()

    def pause_writing(self) -> None:
        """Handle a client that does not read."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Handle a client that reads again."""
        self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the end of the connection."""
        self._connection.connection_lost(exc)
