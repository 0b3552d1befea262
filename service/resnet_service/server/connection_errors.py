"""What a client and the log get when a connection is rejected before its request is complete."""

import time
from http import HTTPStatus
from random import getrandbits
from typing import Final

import structlog

from resnet_service.errors import HeadersTooLarge, MalformedRequest, RequestTimeout, ServiceError
from resnet_service.metric_labels import ConnectionReason
from resnet_service.server.exception_handlers import connection_error

MAX_HEADER_BYTES: Final = 65_536
MAX_HEADERS: Final = 100
ERRORS: Final[dict[ConnectionReason, ServiceError]] = {
    "header_timeout": RequestTimeout("request headers were not received in time"),
    "header_too_large": HeadersTooLarge(
        f"request headers exceed {MAX_HEADER_BYTES:,} bytes or {MAX_HEADERS} fields"
    ),
    "malformed": MalformedRequest(
        "malformed HTTP request, several Host fields, or a protocol upgrade with a body"
    ),
}
"""Errors by reason. The other reasons (limit, pipelined, write_timeout) abort the connection."""

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)
_LOG_INTERVAL_S: Final = 1.0
_TLS_HANDSHAKE: Final = b"\x16\x03"


def new_request_id() -> str:
    """Return a random request id."""
    return f"{getrandbits(64):016x}"


def starts_tls(data: bytes) -> bool:
    """Return whether the first bytes of a connection are those of TLS."""
    return data.startswith(_TLS_HANDSHAKE)


def encode_error(
    reason: ConnectionReason, path: str, request_id: str, headers: list[tuple[bytes, bytes]]
) -> bytes:
    """Return the response to a connection that is closed, as bytes; `headers` are added to it."""
    response = connection_error(path, ERRORS[reason])
    headers = [
        *response.raw_headers,
        (b"x-request-id", request_id.encode()),
        (b"connection", b"close"),
        *headers,
    ]
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    phrase = HTTPStatus(response.status_code).phrase.encode()
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (response.status_code, phrase, lines, bytes(response.body))


class RejectionLog:
    """Logs rejected connections, at most one line per second; `omitted` counts those without a line."""

    def __init__(self) -> None:
        self._next_at = 0.0
        self._omitted = 0

    def write(
        self, reason: ConnectionReason, client: str | None, request_id: str | None, *, is_tls: bool
    ) -> None:
        """Log a connection: why and whose it is, and the id in its error response if it gets one."""
        now = time.monotonic()
        if now < self._next_at:
            self._omitted += 1
            return
        fields = {"client": client, "request_id": request_id, "omitted": self._omitted or None}
        if is_tls:
            fields["detail"] = "the client started TLS, and this port serves HTTP"
        fields = {name: value for name, value in fields.items() if value is not None}
        _log.warning("connection_rejected", reason=reason, **fields)
        self._next_at, self._omitted = now + _LOG_INTERVAL_S, 0
