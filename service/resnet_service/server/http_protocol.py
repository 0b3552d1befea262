"""HTTP connections: uvicorn's protocol class with limits on clients.

Uvicorn limits neither the size of request headers, nor the time a client takes to send them, nor the number
of pipelined requests, nor the time a response stays unread. `HTTPConnection` adds these limits, and
`ConnectionRegistry` a limit on open connections. This module must not depend on routes or on the engine.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Literal

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from resnet_service.metrics import Metrics
from resnet_service.server.exception_handlers import PROBLEM_MEDIA_TYPE, http_problem

_MAX_HEADER_BYTES: Final = 65_536
_MAX_HEADERS: Final = 100
_MAX_PIPELINED: Final = 100
"""Requests of one connection that may wait for earlier ones; one more aborts the connection."""
_MAX_OVER_LIMIT: Final = 128
"""Connections over the limit that get a 503 at the same time; beyond it, new ones are aborted without one."""
_LINGER_S: Final = 2.0
"""Time for which a rejected client may still send: an immediate close would reset the unread error."""

Reason = Literal["limit", "header_timeout", "header_too_large", "malformed", "pipelined", "write_timeout"]
"""Why the server closed a connection; the `reason` label of inference_connections_rejected_total."""


@dataclass(eq=False)
class ConnectionRegistry:
    """The open connections of one server and their limits; lives as long as the server.

    If more than `limit` are open, the one that has waited longest for a complete request is closed, so that
    idle and slow clients cannot keep others out. `body_timeout_s` limits a body that is still arriving after
    its response, and the time in which a client reads nothing of a response.

    Usage: `uvicorn.Config(app, http=partial(HTTPConnection, ConnectionRegistry(metrics, 1000, 10, 30)))`.
    """

    metrics: Metrics
    limit: int
    header_timeout_s: float
    body_timeout_s: float
    open: int = 0
    idle: "OrderedDict[HTTPConnection, None]" = field(default_factory=OrderedDict)
    """Connections without a complete request, longest waiting first."""

    def record_closed(self, reason: Reason) -> None:
        """Count a connection that the server closes because a limit was exceeded."""
        self.metrics.connections_rejected.labels(reason).inc()


class HTTPConnection(HttpToolsProtocol):
    """One connection, from `connection_made` to `connection_lost`.

    Headers over 64 KiB or 100 fields are rejected with 431, late ones with 408, malformed requests with 400.
    """

    def __init__(self, registry: ConnectionRegistry, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._registry = registry
        self._pending_bytes = 0  # of incomplete headers, a trailer or a chunk extension
        self._has_progressed = False  # completed something while parsing the current data
        self._in_headers = self._in_body = False
        self._header_bytes = 0  # of the fields parsed so far
        self._unparsed_body_bytes = 0  # of an upgrade request's body, which the parser does not parse
        self._is_rejected = False
        self._header_timer: asyncio.TimerHandle | None = None  # also for the rest of a body
        self._write_timer: asyncio.TimerHandle | None = None
        self._unread_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Override to enforce the connection limit and to start the header timer."""
        super().connection_made(transport)
        registry = self._registry
        registry.open += 1
        if registry.open > registry.limit:
            if registry.idle:
                oldest, _ = registry.idle.popitem(last=False)
                oldest._abort("limit")
            elif registry.open > registry.limit + _MAX_OVER_LIMIT:
                self._abort("limit")
                return
            else:
                self._reject("limit", HTTPStatus.SERVICE_UNAVAILABLE, "too many open connections")
                return
        registry.idle[self] = None
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Override to leave the registry and to cancel all timers; after an error uvicorn cancels none."""
        super().connection_lost(exc)
        self._registry.open -= 1
        self._registry.idle.pop(self, None)
        self._unset_keepalive_if_required()
        self._cancel_header_timer()
        if self._write_timer is not None:
            self._write_timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Override because uvicorn limits no bytes before a request and sends plain-text errors."""
        if self._is_rejected:
            return
        self._unset_keepalive_if_required()
        self._has_progressed = False
        try:
            self._parse(data)
        except httptools.HttpParserError:
            if not self._is_rejected:
                self._reject("malformed", HTTPStatus.BAD_REQUEST, "malformed HTTP request")
            return
        # Bytes after the part that this data completed are not counted: this limit need not be exact.
        self._pending_bytes = 0 if self._has_progressed else self._pending_bytes + len(data)
        if self._pending_bytes > _MAX_HEADER_BYTES:
            self._reject_headers()
        elif not self._is_processing:
            self._update_timers()

    def on_message_begin(self) -> None:
        """Override to count the bytes of these request headers."""
        super().on_message_begin()
        self._in_headers = True
        self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Override because uvicorn accepts a URL of any length."""
        super().on_url(url)
        self._count_headers(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Override because uvicorn accepts any number of fields of any length."""
        super().on_header(name, value)
        self._count_headers(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """Override because uvicorn queues any number of pipelined requests and drops an upgrade's body."""
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._abort("pipelined")
            raise _RejectedError
        self._in_headers, self._in_body, self._has_progressed = False, True, True
        self._cancel_header_timer()
        if self.parser.should_upgrade():
            # No upgrade is supported, so the request is served as HTTP/1.1. But the parser stops at its body,
            # which it takes for data of the new protocol.
            fields = dict(self.headers)
            if b"transfer-encoding" in fields:
                self._reject("malformed", HTTPStatus.BAD_REQUEST, "an upgrade request has a chunked body")
                raise _RejectedError
            self._unparsed_body_bytes = int(fields.get(b"content-length", b"0"))
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Override because the parser reports an upgrade as complete before its body, and to end idleness."""
        if self._unparsed_body_bytes:
            return
        self._in_body, self._has_progressed = False, True
        if self._is_processing:
            self._registry.idle.pop(self, None)  # the client now waits for the server
        super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        """Override to tell a body, which the application limits, from bytes that count as headers."""
        self._has_progressed = True
        super().on_body(body)

    def on_response_complete(self) -> None:
        """Override to start the timers for an unfinished body, the next headers, and an unread response."""
        super().on_response_complete()
        if not self._is_processing:
            self._registry.idle[self] = None
            if self._in_headers or self._in_body:
                self._update_timers()
        if self.transport.get_write_buffer_size():
            self._start_write_timer()

    def pause_writing(self) -> None:
        """Override because uvicorn waits without a limit for a client to read."""
        super().pause_writing()
        self._start_write_timer()

    def timeout_keep_alive_handler(self) -> None:
        """Override because a transport with unread bytes does not close until they are read."""
        if self.transport.get_write_buffer_size():
            self._abort("write_timeout")
        super().timeout_keep_alive_handler()

    def _parse(self, data: bytes) -> None:
        while data:
            if self._unparsed_body_bytes:
                body, data = data[: self._unparsed_body_bytes], data[self._unparsed_body_bytes :]
                self._unparsed_body_bytes -= len(body)
                self.on_body(body)
                if not self._unparsed_body_bytes:
                    self.on_message_complete()
                continue
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            else:
                return

    @property
    def _is_processing(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _count_headers(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > _MAX_HEADER_BYTES or len(self.headers) > _MAX_HEADERS:
            self._reject_headers()
            raise _RejectedError

    def _update_timers(self) -> None:
        """Start the timer that fits: for incomplete headers, for the rest of a body, or for keep-alive."""
        if self._in_headers or self._in_body or self._pending_bytes:
            if self._header_timer is None:
                self._start_header_timer()
            return
        self._cancel_header_timer()
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _start_header_timer(self) -> None:
        seconds = self._registry.body_timeout_s if self._in_body else self._registry.header_timeout_s
        self._header_timer = self.loop.call_later(seconds, self._on_header_timeout)

    def _cancel_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _start_write_timer(self) -> None:
        if self._write_timer is None:
            self._unread_bytes = self.transport.get_write_buffer_size()
            self._write_timer = self.loop.call_later(self._registry.body_timeout_s, self._on_write_timeout)

    def _on_header_timeout(self) -> None:
        self._header_timer = None
        if self._in_body or not (self._in_headers or self._pending_bytes):
            self.transport.close()  # no request is waiting for a response
        else:
            detail = f"request headers were not received within {self._registry.header_timeout_s:g} s"
            self._reject("header_timeout", HTTPStatus.REQUEST_TIMEOUT, detail)

    def _on_write_timeout(self) -> None:
        self._write_timer = None
        size = self.transport.get_write_buffer_size()
        if size >= self._unread_bytes > 0:
            self._abort("write_timeout")
        elif size:
            self._start_write_timer()

    def _reject_headers(self) -> None:
        detail = f"request headers exceed {_MAX_HEADER_BYTES:,} bytes or {_MAX_HEADERS} fields"
        self._reject("header_too_large", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)

    def _reject(self, reason: Reason, status: HTTPStatus, detail: str) -> None:
        """Send an error response, and close the connection once the client has had time to read it."""
        cycle = self.cycle
        has_broken_body = cycle is not None and cycle.more_body and (self._is_processing or self._in_body)
        if has_broken_body and (self.pipeline or cycle.response_started):
            self._abort(reason)  # an error response would overtake earlier ones or interrupt its own
            return
        self._is_rejected = True
        self._registry.record_closed(reason)
        self._registry.idle.pop(self, None)
        self._cancel_header_timer()
        if not self._is_processing:
            self._send_error(status, detail)
        elif cycle.more_body:
            self._send_error(status, detail)
            cycle.disconnected = True  # ends the application's wait for the rest of the body
            cycle.message_event.set()
        else:
            cycle.keep_alive = False  # its response, sent before any error, is the connection's last

    def _send_error(self, status: HTTPStatus, detail: str) -> None:
        body = http_problem(status, detail).model_dump_json(exclude_none=True).encode()
        headers = [(b"content-type", PROBLEM_MEDIA_TYPE.encode()), (b"content-length", b"%d" % len(body))]
        headers += [(b"connection", b"close"), *self.server_state.default_headers]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (status, status.phrase.encode(), lines, body))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._header_timer = self.loop.call_later(_LINGER_S, self.transport.abort)

    def _abort(self, reason: Reason) -> None:
        self._is_rejected = True
        self._registry.record_closed(reason)
        self.transport.abort()


class _RejectedError(Exception):
    """Stops the parser after this connection was rejected."""
