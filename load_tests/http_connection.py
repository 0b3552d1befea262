"""HTTP/1.1 requests as prepared bytes, and the connection that sends them.

The load generator shares the machine with the service, so each request costs as little as possible: its bytes
are prepared in advance, and of the response only the status, the length and a few headers are read.
"""

import asyncio
import math
import re
from collections.abc import Sequence
from typing import Final, NamedTuple, cast
from urllib.parse import urlsplit

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RETRY_AFTER: Final = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE)
_CLOSE: Final = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_STAGE: Final = re.compile(rb"(decode|queue|device);dur=([\d.]+)")
_BOUNDARY: Final = "a-boundary-that-no-image-contains"


class Request(NamedTuple):
    """A request ready to be sent, and the kind under which it is recorded.

    With `disconnect_after` the client sends that many bytes of it and closes the connection shortly after.
    """

    kind: str
    content: bytes
    disconnect_after: int | None = None


class Response(NamedTuple):
    """The values that are read from a response; nan for a header that it does not have.

    The last three are the stages in the header Server-Timing.
    """

    status: int
    retry_after_s: float = math.nan
    decode_s: float = math.nan
    queue_s: float = math.nan
    device_s: float = math.nan


def get_request(url: str, path: str) -> Request:
    """Return a GET of a path; the path is its kind."""
    parts = urlsplit(url)
    return Request(
        path, f"GET {parts.path.rstrip('/')}{path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
    )


def post_request(
    url: str, body: bytes, kind: str, path: str = "/predict", content_type: str = "image/jpeg"
) -> Request:
    """Return a POST of a body; by default of one image to /predict."""
    parts = urlsplit(url)
    headers = (
        f"POST {parts.path.rstrip('/')}{path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return Request(kind, headers.encode() + body)


def batch_request(url: str, images: Sequence[bytes], kind: str) -> Request:
    """Return a POST of several images to /predict/batch, as a multipart form."""
    part = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'.encode()
    body = b"".join(part + image + b"\r\n" for image in images) + f"--{_BOUNDARY}--\r\n".encode()
    return post_request(url, body, kind, "/predict/batch", f"multipart/form-data; boundary={_BOUNDARY}")


class Connection(asyncio.Protocol):
    """One connection with at most one request at a time. It is in `connections` until it is closed.

    `is_reusable` becomes false once no further request can be sent.
    """

    def __init__(self, connections: "set[Connection]") -> None:
        connections.add(self)
        self.is_reusable = True
        self.idle_since = 0.0
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._pending: asyncio.Future[Response] | None = None
        self._received = bytearray()
        self._response: Response | None = None
        self._response_bytes = 0

    def send(self, content: bytes) -> asyncio.Future[Response]:
        """Send a request and return the future of its response."""
        self._pending = asyncio.get_running_loop().create_future()
        if self._transport is None or self._transport.is_closing():
            self._pending.set_exception(ConnectionResetError("closed by the server"))
        else:
            self._transport.write(content)
        return self._pending

    def close(self) -> None:
        """Close at once and discard data that is still to be sent or received."""
        self.is_reusable = False
        if self._pending is not None:
            self._pending.cancel()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class is not a subclass of it

    def data_received(self, data: bytes) -> None:
        """Collect the response and resolve the future once it is complete."""
        self._received += data
        if self._response is None:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            self._parse_headers(bytes(self._received[:end]), end + 4)
        if len(self._received) >= self._response_bytes:
            response, self._response = self._response, None
            self._received.clear()
            if self._pending is not None and response is not None and not self._pending.done():
                self._pending.set_result(response)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the pending request."""
        self.is_reusable = False
        self._connections.discard(self)
        if self._pending is not None and not self._pending.done():
            self._pending.set_exception(exc or ConnectionResetError("closed before the response"))

    def _parse_headers(self, headers: bytes, header_bytes: int) -> None:
        retry_after, length = _RETRY_AFTER.search(headers), _LENGTH.search(headers)
        stages = {name.decode() + "_s": float(ms) / 1e3 for name, ms in _STAGE.findall(headers)}
        seconds = float(retry_after[1]) if retry_after else math.nan
        self._response = Response(int(headers[9:12]), seconds, **stages)
        self._response_bytes = header_bytes + (int(length[1]) if length else 0)
        # Without a length the body ends with the connection; it is not read.
        self.is_reusable = length is not None and not _CLOSE.search(headers)
