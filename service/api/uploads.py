"""Read pictures out of a request body, within limits, in memory.

A body over its limit is refused while it is being read, not after; nothing goes to a temporary file.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Self

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Scope

from service.errors import BodyTooLarge, InvalidRequest, Overloaded, ReadTimeout, UnsupportedMedia
from service.settings import Settings

FIELD: Final = "file"


@dataclass(frozen=True)
class Limits:
    """Bounds on one request: its body in bytes, its parts, and the seconds the client has to send it."""

    max_bytes: int
    max_parts: int
    timeout_s: float

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the limits that the settings give."""
        return cls(int(settings.max_upload_mb * 1e6), settings.max_files, settings.read_timeout_s)


def discard(scope: Scope) -> None:
    """Say that what is still read of a request's body is thrown away."""
    scope["discarding"] = True


def is_discarding(scope: Scope) -> bool:
    """Tell whether it is."""
    return "discarding" in scope


class UploadMemory:
    """The bytes of all uploads held at once, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def take(self, size: int) -> None:
        """Hold so many bytes more; raises Overloaded where that would be too many."""
        if self.held + size > self.limit:
            raise Overloaded(
                f"the uploads at work fill the memory for them ({self.limit:,} bytes)", "memory", 1.0
            )
        self.held += size

    def give_back(self, size: int) -> None:
        """Hold so many bytes less."""
        self.held -= size


@dataclass
class Part:
    """One part of a form: its field's name, the client's file name (never opened), and its bytes."""

    name: str = ""
    filename: str | None = None
    data: bytearray = field(default_factory=bytearray)


async def read_pictures(request: Request, limits: Limits) -> list[Part]:
    """Return the `file` parts of a form, or the one picture that is the whole body.

    Raises BodyTooLarge, ReadTimeout, UnsupportedMedia for another content type and InvalidRequest for a
    malformed form or one without a `file` part; ClientDisconnect where the client hangs up.
    """
    content_type, options = parse_options_header(request.headers.get("content-type"))
    if content_type == b"multipart/form-data":
        async with _in_time(limits):
            parts = await _read_form(request, options.get(b"boundary", b""), limits)
    elif content_type.startswith(b"image/") or content_type == b"application/octet-stream":
        parts = [Part(name=FIELD, data=await read_body(request, limits))]
    else:
        raise UnsupportedMedia(
            f"send multipart/form-data with the field {FIELD!r}, or a picture as an image/* body"
        )
    pictures = [part for part in parts if part.name == FIELD]
    if not pictures:
        found = ", ".join(sorted({repr(part.name) for part in parts})) or "no fields"
        raise InvalidRequest(f"the form needs the field {FIELD!r}; it has {found}")
    return pictures


async def read_body(request: Request, limits: Limits) -> bytearray:
    """Return the whole body; raises BodyTooLarge, ReadTimeout, and ClientDisconnect as `read_pictures`."""
    body = bytearray()
    async with _in_time(limits):
        async for chunk in _chunks(request, limits):
            body += chunk
    return body


@asynccontextmanager
async def _in_time(limits: Limits) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(limits.timeout_s):
            yield
    except TimeoutError as error:
        raise ReadTimeout(f"the request was not sent within {limits.timeout_s:g} s") from error


async def _chunks(request: Request, limits: Limits) -> AsyncIterator[bytes]:
    too_large = BodyTooLarge(f"the request is larger than {limits.max_bytes:,} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > limits.max_bytes:
        raise too_large
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limits.max_bytes:
            raise too_large
        yield chunk


async def _read_form(request: Request, boundary: bytes, limits: Limits) -> list[Part]:
    if not boundary:
        raise InvalidRequest("the content type multipart/form-data lacks its boundary")
    form = _Form(limits.max_parts)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin_part,
                "on_part_data": form.add_data,
                "on_header_field": form.add_header_name,
                "on_header_value": form.add_header_value,
                "on_header_end": form.end_header,
                "on_end": form.end,
            },
        )
        async for chunk in _chunks(request, limits):
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise InvalidRequest(f"the form is malformed: {error}") from error
    if not form.complete:
        raise InvalidRequest("the form is empty or cut off before its closing boundary")
    return form.parts


class _Form:
    """Collects what the parser calls back with."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[Part] = []
        self.complete = False
        self._max_parts = max_parts
        self._header = bytearray()
        self._value = bytearray()

    def begin_part(self) -> None:
        if len(self.parts) == self._max_parts:
            raise BodyTooLarge(f"the form has more than {self._max_parts} parts")
        self.parts.append(Part())

    def add_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data += memoryview(data)[start:end]

    def add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            self.parts[-1].name = options.get(b"name", b"").decode("utf-8", "replace")
            if b"filename" in options:
                self.parts[-1].filename = options[b"filename"].decode("utf-8", "replace")
        self._header.clear()
        self._value.clear()

    def end(self) -> None:
        self.complete = True
