"""Frames: the messages between an HTTP worker and the main process.

A frame has a fixed header and, rarely, a payload. Each request of a worker has a token; the main process
answers it exactly once, with OK or FAILED. Only the main process sends pickles, because a worker handles
bytes from outside.
"""

import asyncio
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Final, NamedTuple, cast

_HEADER: Final = struct.Struct("<BBHIIIIddd")
_MAX_DELAY_S: Final = 0.002
_MAX_PAYLOAD: Final = 256_000_000
"""Metrics and API keys are smaller; more is a sign of a damaged stream."""


class Kind(IntEnum):
    """What a frame is for. The comment has the fields that are set.

    From a worker; those with a token are answered.
    """

    READY = 1
    RESERVE = 2  # token, which becomes the number of the reservation; slot: version; lane; a: timeout in s
    START = 3  # token, reservation, a: deadline
    SUSPEND = 4  # reservation
    RELEASE = 5  # reservation
    DROP = 6  # reservation: its slot is not needed any more
    RUN = 7  # token, reservation, slot, number: classes, lane, a: deadline, b: 1 with the embedding
    RUN_UNRESERVED = 8  # as RUN, but reservation: generation of the model
    CANCEL = 9  # token
    CALL = 10  # token, payload: JSON
    RETIRED = 11  # number: a generation that no request uses any more
    UPDATED = 12  # an UPDATE has been applied

    # From the main process. A worker whose RESERVE or START is answered with slot 1 has a permit.
    OK = 20
    FAILED = 21  # payload: the error
    UPDATE = 22  # payload: an `Update`
    DRAIN = 23


class Frame(NamedTuple):
    """One message; which fields are set depends on the kind."""

    kind: int
    slot: int = 0
    token: int = 0
    reservation: int = 0
    number: int = 0
    a: float = 0.0
    b: float = 0.0
    c: float = 0.0
    payload: bytes = b""
    lane: int = 0


class FrameChannel(asyncio.Protocol):
    """One end of the socket between a worker and the main process.

    All frames that are sent in one iteration of the event loop leave in one write. Nothing limits what waits
    to be written: the requests in progress do.
    """

    def __init__(
        self,
        on_frame: Callable[[Frame], None],
        on_lost: Callable[[], None],
        on_read: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_read` is called after the frames of one read."""
        self._on_frame = on_frame
        self._on_read = on_read
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._received = b""
        self._outgoing: list[bytes] = []
        self._is_scheduled = False

    def send(self, frame: Frame, *, is_urgent: bool = True) -> None:
        """Send a frame at the end of this iteration of the event loop, unless the channel is lost.

        A frame that is not urgent waits up to 2 ms for others: each write wakes the other process.
        """
        if self._transport is None:
            return
        if is_urgent and not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._flush)
        elif not self._outgoing:
            self._loop.call_later(_MAX_DELAY_S, self._flush)
        kind, slot, token, reservation, number, a, b, c, payload, lane = frame
        header = _HEADER.pack(kind, lane, slot, token, reservation, number, len(payload), a, b, c)
        self._outgoing.append(header + payload if payload else header)

    @property
    def is_connected(self) -> bool:
        """Whether the other process can receive frames."""
        return self._transport is not None

    def close(self) -> None:
        """Close the socket; `on_lost` is called."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to send (called by asyncio)."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Report that the other process has ended or closed its end (called by asyncio)."""
        self._transport = None
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        """Handle all frames that are complete (called by asyncio)."""
        data = self._received + data if self._received else data
        position, size = 0, len(data)
        while size - position >= _HEADER.size:
            kind, lane, slot, token, reservation, number, length, a, b, c = _HEADER.unpack_from(
                data, position
            )
            if length > _MAX_PAYLOAD:
                self.close()
                return
            end = position + _HEADER.size + length
            if end > size:
                break
            payload = data[end - length : end] if length else b""
            position = end
            self._on_frame(Frame(kind, slot, token, reservation, number, a, b, c, payload, lane))
        self._received = data[position:] if position else data
        self._on_read()

    def _flush(self) -> None:
        self._is_scheduled = False
        if self._transport is not None and self._outgoing:
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()
