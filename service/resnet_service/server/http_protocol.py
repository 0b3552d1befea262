"""HTTP connections: uvicorn's protocol class with the limits that an open port needs.

`HTTPConnection` overrides undocumented methods of uvicorn's class and uses these attributes: `client`,
`flow`, `headers`, `loop`, `parser`, `pipeline`, `server_state.default_headers`, `timeout_keep_alive`,
`transport`, `url`, and of `cycle`, the last request with complete headers, `keep_alive`, `more_body`,
`response_complete` and `response_started`. Minor versions may change them, so pyproject.toml pins one. This
module must not depend on routes or on the engine.
"""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

from httptools import HttpParserError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from resnet_service.metric_labels import ConnectionReason
from resnet_service.metrics import Metrics
from resnet_service.server.connection_errors import (
    ERRORS,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    RejectionLog,
    encode_error,
    new_request_id,
    starts_tls,
)

_MAX_PIPELINED: Final = 100
"""Requests of one connection that may wait for earlier ones; uvicorn reads on after each response."""
_BODY_HEADERS: Final = frozenset((b"content-length", b"transfer-encoding"))
_LINGER_S: Final = 2.0
"""Time for which a rejected client may still send: an immediate close would reset the unread error."""


@dataclass(eq=False)
class ConnectionRegistry:
    """The open connections of one server and their limits; lives as long as the server.

    If more than `limit` are open, the one that has waited longest for a complete request is closed, so that
    idle and slow clients cannot keep others out; if none waits, the new one is. `body_timeout_s` limits
    the rest of a body after its response, and the time in which a client reads nothing of a response. A
    client that stops sending within `half_close_s` after its request gets its response.

        registry = ConnectionRegistry(
            metrics, limit=1000, header_timeout_s=10, body_timeout_s=30, half_close_s=0.5
        )
        config = uvicorn.Config(app, http=partial(HTTPConnection, registry))
    """

    metrics: Metrics
    limit: int
    header_timeout_s: float
    body_timeout_s: float
    half_close_s: float
    open: int = 0
    idle: "OrderedDict[HTTPConnection, None]" = field(default_factory=OrderedDict)
    """Connections without a complete request, longest waiting first."""
    log: RejectionLog = field(default_factory=RejectionLog)


class HTTPConnection(HttpToolsProtocol):
    """One connection, from `connection_made` to `connection_lost`."""

    def __init__(self, registry: ConnectionRegistry, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._registry = registry
        self._header_bytes = 0  # received since request headers were complete or a part of a body arrived
        self._is_rejected = False
        self._has_new_request = False  # in the bytes of this read
        self._is_tls = False
        self._received_at = 0.0
        self._is_body_late = False  # it was left in the socket for longer than a half-close may take
        self._is_half_closed = False
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Override because uvicorn accepts any number of connections, and silent ones for any time."""
        super().connection_made(transport)
        registry = self._registry
        registry.open += 1
        registry.idle[self] = None
        self._start_read_timer(registry.header_timeout_s, self.timeout_keep_alive_handler)
        if registry.open > registry.limit:
            registry.idle.popitem(last=False)[0]._reject("limit")  # the new one itself if no other is idle

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Override to leave the registry and to cancel all timers."""
        super().connection_lost(None)  # with an error, uvicorn would not cancel its keep-alive timer
        self._registry.open -= 1
        self._registry.idle.pop(self, None)
        for timer in (self._read_timer, self._write_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()

    @property
    def is_in_body(self) -> bool:
        """Whether the next bytes are part of a body that the application reads."""
        return self.cycle is not None and self.cycle.more_body

    def data_received(self, data: bytes) -> None:
        """Override because uvicorn limits neither the size of incomplete headers nor the time for them.

        Nor does it leave a body in the socket until the application reads it. Trailers and chunk extensions
        count as headers.
        """
        if self._is_rejected:
            return
        if self.headers is None:
            self._is_tls = starts_tls(data)
        self._received_at = self.loop.time()
        self._header_bytes += len(data)
        self._has_new_request = False
        super().data_received(data)
        if self._has_new_request and self.cycle.more_body:
            self.flow.pause_reading()  # until the application reads the body
            if self._unread_timer is not None:
                self._unread_timer.cancel()
            self._unread_timer = self.loop.call_later(self._registry.half_close_s, self._check_unread_body)
        if self._header_bytes > MAX_HEADER_BYTES or len(self.headers or ()) > MAX_HEADERS:
            self._reject("header_too_large")
        elif self._header_bytes and not self._read_timer and (not self.cycle or self.cycle.response_complete):
            self._start_read_timer(self._registry.header_timeout_s, self.timeout_keep_alive_handler)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Override because uvicorn closes the connection, also if the client still waits for its response.

        TCP cannot tell a client that only stops sending from one that closes the connection. The first does
        so right after its request, the second gives up later. Once the response has begun, it is finished.
        """
        if self.cycle and not (self.cycle.more_body or self.cycle.response_complete):
            silent_s = self.loop.time() - self._received_at
            is_early = silent_s < self._registry.half_close_s and not self._is_body_late
            self._is_half_closed |= is_early or self.cycle.response_started
            self.cycle.keep_alive = False  # this is the last request
        return self._is_half_closed

    def on_headers_complete(self) -> None:
        """Override because uvicorn limits neither the size of headers nor the number of pipelined requests.

        It accepts several Host fields, and takes the body of a request for an upgrade, which it declines, for
        another request.
        """
        if self._header_bytes > MAX_HEADER_BYTES:  # perhaps a body arrived with them
            self._header_bytes = len(self.url) + sum(map(len, chain.from_iterable(self.headers)))
        if self._header_bytes > MAX_HEADER_BYTES or len(self.headers) > MAX_HEADERS:
            self._reject("header_too_large")
        elif len(self.pipeline) >= _MAX_PIPELINED:
            self._reject("pipelined")
        elif self._has_several_hosts() or self._is_upgrade_with_body():
            self._reject("malformed")
        if self._is_rejected:
            raise HttpParserError  # stops the parser
        self._header_bytes = 0
        self._is_body_late = False
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        super().on_headers_complete()
        self._has_new_request = True

    def on_body(self, body: bytes) -> None:
        """Override to tell a body, which the application limits, from bytes that count as headers."""
        self._header_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Override to end idleness, and because uvicorn has no keep-alive timeout after an early response."""
        super().on_message_complete()
        if self.cycle.response_complete:
            self.cycle.more_body = False
            self._start_read_timer(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        else:
            self._registry.idle.pop(self, None)  # the client now waits for the server

    def on_response_complete(self) -> None:
        """Override because uvicorn waits without a limit for the rest of a body, and for a client to read."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_unread()
        elif self.cycle.response_complete or self.cycle.more_body:
            self._registry.idle[self] = None
            if self.cycle.response_complete and self.cycle.more_body:
                self._start_read_timer(self._registry.body_timeout_s, self.timeout_keep_alive_handler)

    def pause_writing(self) -> None:
        """Override because uvicorn waits without a limit for a client to read."""
        super().pause_writing()
        self._watch_unread()

    def timeout_keep_alive_handler(self) -> None:
        """Override because uvicorn's close waits for a client to read, and does not report late headers."""
        if self.transport.get_write_buffer_size():
            self._reject("write_timeout")
        elif self._header_bytes:
            self._reject("header_timeout")
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Override because uvicorn's response is plain text, and may interrupt that to an earlier request."""
        self._reject("malformed")

    def _start_read_timer(self, seconds: float, callback: Callable[[], None]) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
        self._read_timer = self.loop.call_later(seconds, callback)

    def _has_several_hosts(self) -> bool:
        return [name for name, _ in self.headers].count(b"host") > 1  # a proxy may use another one

    def _is_upgrade_with_body(self) -> bool:
        return self.parser.should_upgrade() and not _BODY_HEADERS.isdisjoint(dict(self.headers))

    def _check_unread_body(self) -> None:
        self._is_body_late = self.flow.read_paused

    def _watch_unread(self, unread_before: float = math.inf) -> None:
        """Abort the connection once the client has read nothing of its response for the body timeout."""
        if self._write_timer is not None:
            self._write_timer.cancel()
        unread = self.transport.get_write_buffer_size()
        if unread >= unread_before:
            self._reject("write_timeout")
        elif unread:
            self._write_timer = self.loop.call_later(
                self._registry.body_timeout_s, self._watch_unread, unread
            )

    def _reject(self, reason: ConnectionReason) -> None:
        """Close the connection: after the responses in progress, after an error response, or at once."""
        if self._is_rejected and reason in ERRORS:
            return
        self._is_rejected = True
        self._registry.metrics.connections_rejected.labels(reason).inc()
        request_id = None
        if reason not in ERRORS or (self.cycle and self.cycle.more_body):
            self.transport.abort()  # an error in a body could be taken for the response to another request
        elif self.cycle and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        else:
            request_id = new_request_id()
            self._send_error(reason, request_id)
        address = self.client[0] if self.client else None
        self._registry.log.write(reason, address, request_id, is_tls=self._is_tls)

    def _send_error(self, reason: ConnectionReason, request_id: str) -> None:
        path = self.url.decode("latin-1") if self.headers is not None else ""
        self.transport.write(encode_error(reason, path, request_id, self.server_state.default_headers))
        self.transport.write_eof()
        if self.headers:
            self.headers.clear()  # a single read can contain 60,000, which take 4 MB
        self._start_read_timer(_LINGER_S, self.transport.abort)
