"""A client's connection, and the limits that hold before anything it sends is a request.

Uvicorn's protocol trusts its clients: a head may be of any length and take for ever, any number of
connections may be open, and an answer that nobody reads is kept. Here each of these has an end.
"""

import asyncio
from http import HTTPStatus
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from resnet_service.server.connections import ConnectionRegistry, Reason
from resnet_service.server.exception_handlers import PROBLEM_MEDIA_TYPE, http_problem

_MAX_HEADER_BYTES: Final = 65_536
_TOO_LONG: Final = f"the request's head is longer than {_MAX_HEADER_BYTES:,} bytes"
_MAX_HEADERS: Final = 100
_MAX_PIPELINED: Final = 100
"""Requests of a connection that wait for the one before them; whoever sends more is cut off."""
_MAX_REJECTED: Final = 128
"""ConnectionRegistry over the limit that are told so, which takes a moment; in a flood the others are not."""
_LINGER_S: Final = 2.0
"""For which a rejected client may still send, so that it reads why, not that its connection was reset."""


class HTTPConnection(HttpToolsProtocol):
    """One connection, from `connection_made` to `connection_lost`.

    A head over 64 KiB or 100 fields is rejected with 431, one that is late with 408, what is no HTTP with 400.
    """

    def __init__(self, connections: ConnectionRegistry, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._all = connections
        self._stray_bytes = 0  # of a head that is not complete, a trailer, a chunk's extension
        self._progress = False  # of what is being parsed
        self._in_headers = False
        self._field_bytes = 0  # of the head's complete fields
        self._body_left = 0  # of a body that the parser does not see
        self._in_body = False
        self._rejected = False
        self._late: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._unread_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, and let another go where there are too many."""
        super().connection_made(transport)
        connections = self._all
        connections.open += 1
        if connections.open > connections.limit:
            if connections.idle:
                oldest, _ = connections.idle.popitem(last=False)
                oldest._abort("limit")
            elif connections.open > connections.limit + _MAX_REJECTED:
                self._abort("limit")
                return
            else:
                self._reject("limit", HTTPStatus.SERVICE_UNAVAILABLE, "too many connections are open")
                return
        connections.idle[self] = None
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        self._all.open -= 1
        self._all.idle.pop(self, None)
        self._unset_keepalive_if_required()
        for timer in (self._late, self._unread):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Read on, and see that what is no whole request yet stays within its limits."""
        if self._rejected:
            return
        self._unset_keepalive_if_required()
        self._progress = False
        try:
            self._parse(data)
        except httptools.HttpParserError:
            if not self._rejected:
                self._reject("malformed", HTTPStatus.BAD_REQUEST, "this is no HTTP request")
            return
        # How much of the data came after the progress is not worth knowing.
        self._stray_bytes = 0 if self._progress else self._stray_bytes + len(data)
        if self._stray_bytes > _MAX_HEADER_BYTES:
            self._reject_headers(_TOO_LONG)
        elif self._answered:
            self._update_timers()

    def on_message_begin(self) -> None:
        """Begin to count."""
        super().on_message_begin()
        self._in_headers = True
        self._field_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Count it."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count it."""
        super().on_header(name, value)
        self._count(len(name) + len(value))
        if len(self.headers) > _MAX_HEADERS:
            self._reject_headers(f"the request has more than {_MAX_HEADERS} header fields")
            raise _RejectedError

    def on_headers_complete(self) -> None:
        """Begin with a request, whose own time limits hold from now on."""
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._abort("pipelined")
            raise _RejectedError
        self._in_headers, self._in_body, self._progress = False, True, True
        self._cancel_header_timer()
        if self.parser.should_upgrade():
            # To a protocol not spoken here: the request is answered as it is. But the parser takes its body
            # for that protocol.
            self._body_left = self._declared_length()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Look forward to the next head."""
        if self._body_left:
            return  # the parser's view of an upgrade
        self._in_body, self._progress = False, True
        if not self._answered:
            self._all.idle.pop(self, None)  # from now on it waits for us
        super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        """Take it."""
        self._progress = True
        super().on_body(body)

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the last bytes to be read."""
        super().on_response_complete()
        if self._answered:
            self._all.idle[self] = None
            if self._in_headers or self._in_body:
                self._update_timers()
        if self.transport.get_write_buffer_size():
            self._start_write_timer()

    def pause_writing(self) -> None:
        """Wait for the client to read, but not for ever."""
        super().pause_writing()
        self._start_write_timer()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, whatever its client has not read."""
        if self.transport.get_write_buffer_size():
            self._abort("write_timeout")
        super().timeout_keep_alive_handler()

    def _parse(self, data: bytes) -> None:
        while data:
            if self._body_left:
                body, data = data[: self._body_left], data[self._body_left :]
                self._body_left -= len(body)
                self.on_body(body)
                if not self._body_left:
                    self.on_message_complete()
                continue
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            else:
                return

    @property
    def _answered(self) -> bool:
        """Whether no request is being worked at."""
        return self.cycle is None or self.cycle.response_complete

    def _declared_length(self) -> int:
        fields = dict(self.headers)
        if b"transfer-encoding" in fields:
            self._reject("malformed", HTTPStatus.BAD_REQUEST, "an upgrade cannot have a body in chunks")
            raise _RejectedError
        return int(fields.get(b"content-length", b"0"))

    def _count(self, size: int) -> None:
        self._field_bytes += size
        if self._field_bytes > _MAX_HEADER_BYTES:
            self._reject_headers(_TOO_LONG)
            raise _RejectedError

    def _update_timers(self) -> None:
        """Wait for the rest of a head, or of a body that was answered before its end; or for neither."""
        if self._in_headers or self._in_body or self._stray_bytes:
            if self._late is None:
                self._start_header_timer()
            return
        self._cancel_header_timer()
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _start_header_timer(self) -> None:
        seconds = self._all.body_timeout_s if self._in_body else self._all.header_timeout_s
        self._late = self.loop.call_later(seconds, self._on_header_timeout)

    def _cancel_header_timer(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _start_write_timer(self) -> None:
        if self._unread is None:
            self._unread_bytes = self.transport.get_write_buffer_size()
            self._unread = self.loop.call_later(self._all.body_timeout_s, self._on_write_timeout)

    def _on_header_timeout(self) -> None:
        self._late = None
        if self._in_body or not (self._in_headers or self._stray_bytes):
            self.transport.close()  # nothing was asked, or it was answered
        else:
            seconds = self._all.header_timeout_s
            detail = f"the request's head was not sent within {seconds:g} s"
            self._reject("header_timeout", HTTPStatus.REQUEST_TIMEOUT, detail)

    def _on_write_timeout(self) -> None:
        self._unread = None
        size = self.transport.get_write_buffer_size()
        if size >= self._unread_bytes > 0:
            self._abort("write_timeout")
        elif size:
            self._start_write_timer()

    def _reject_headers(self, detail: str) -> None:
        self._reject("header_too_large", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)

    def _reject(self, reason: Reason, status: HTTPStatus, detail: str) -> None:
        """Answer, and close once the client has had a moment to read it."""
        in_vain = (
            self.cycle.more_body and (self.pipeline or self.cycle.response_started) if self.cycle else False
        )
        if in_vain and (self._in_body or not self._answered):
            self._abort(reason)  # a broken body, and no place in the order of answers to say so
            return
        self._rejected = True
        self._all.record_closed(reason)
        self._all.idle.pop(self, None)
        self._cancel_header_timer()
        if self._answered:
            self._send_error(status, detail)
        elif self.cycle.more_body:
            self._send_error(status, detail)
            self.cycle.disconnected = True  # to whoever waits for its body
            self.cycle.message_event.set()
        else:
            self.cycle.keep_alive = False  # its answer, which none may overtake, is the connection's last

    def _send_error(self, status: HTTPStatus, detail: str) -> None:
        body = http_problem(status, detail).model_dump_json(exclude_none=True).encode()
        head = [
            (b"content-type", PROBLEM_MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *self.server_state.default_headers,
        ]
        lines = b"".join(b"%b: %b\r\n" % line for line in head)
        self.transport.write(b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (status, status.phrase.encode(), lines, body))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._late = self.loop.call_later(_LINGER_S, self.transport.abort)

    def _abort(self, reason: Reason) -> None:
        self._rejected = True
        self._all.record_closed(reason)
        self.transport.abort()


class _RejectedError(Exception):
    """Stops the parser: the connection has been rejected."""
