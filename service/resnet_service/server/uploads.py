"""Read images out of a request body, within limits, in memory.

A body over its limit is rejected while it is being read, not after; nothing goes to a temporary file.
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

from resnet_service.errors import (
    InvalidRequestError,
    OverloadedError,
    RequestBodyTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)
from resnet_service.settings import Settings

FIELD: Final = "file"


@dataclass(frozen=True)
class UploadLimits:
    """Bounds on one request: its body in bytes, its parts, and the seconds the client has to send it."""

    max_bytes: int
    max_parts: int
    timeout_s: float

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the limits that the settings give."""
        return cls(
            int(settings.max_upload_mb * 1e6), settings.max_images_per_request, settings.read_timeout_s
        )


def mark_body_discarded(scope: Scope) -> None:
    """Say that what is still read of a request's body is thrown away."""
    scope["discarding"] = True


def is_body_discarded(scope: Scope) -> bool:
    """Tell whether it is."""
    return "discarding" in scope


class UploadMemory:
    """The bytes of all uploads held at once, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def acquire(self, size: int) -> None:
        """Hold so many bytes more; raises OverloadedError where that would be too many."""
        if self.used + size > self.limit:
            raise OverloadedError(
                f"the uploads at work fill the memory for them ({self.limit:,} bytes)", "memory", 1.0
            )
        self.used += size

    def release(self, size: int) -> None:
        """Hold so many bytes less."""
        self.used -= size


@dataclass
class UploadedFile:
    """One part of a form: its field's name, the client's file name (never opened), and its bytes."""

    name: str = ""
    filename: str | None = None
    data: bytearray = field(default_factory=bytearray)


async def read_images(request: Request, limits: UploadLimits) -> list[UploadedFile]:
    """Return the `file` parts of a form, or the one image that is the whole body.

    Raises RequestBodyTooLarge, RequestTimeout, UnsupportedMediaType for another content type and InvalidRequestError for a
    malformed form or one without a `file` part; ClientDisconnect where the client hangs up.
    """
    content_type, options = parse_options_header(request.headers.get("content-type"))
    if content_type == b"multipart/form-data":
        async with _in_time(limits):
            parts = await _read_form(request, options.get(b"boundary", b""), limits)
    elif content_type.startswith(b"image/") or content_type == b"application/octet-stream":
        parts = [UploadedFile(name=FIELD, data=await read_body(request, limits))]
    else:
        raise UnsupportedMediaType(
            f"send multipart/form-data with the field {FIELD!r}, or an image as an image/* body"
        )
    images = [part for part in parts if part.name == FIELD]
    if not images:
        found = ", ".join(sorted({repr(part.name) for part in parts})) or "no fields"
        raise InvalidRequestError(f"the form needs the field {FIELD!r}; it has {found}")
    return images


async def read_body(request: Request, limits: UploadLimits) -> bytearray:
    """Return the whole body; raises RequestBodyTooLarge, RequestTimeout, and ClientDisconnect as `read_images`."""
    body = bytearray()
    async with _in_time(limits):
        async for chunk in _chunks(request, limits):
            body += chunk
    return body


@asynccontextmanager
async def _in_time(limits: UploadLimits) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(limits.timeout_s):
            yield
    except TimeoutError as error:
        raise RequestTimeout(f"the request was not sent within {limits.timeout_s:g} s") from error


async def _chunks(request: Request, limits: UploadLimits) -> AsyncIterator[bytes]:
    too_large = RequestBodyTooLarge(f"the request is larger than {limits.max_bytes:,} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > limits.max_bytes:
        raise too_large
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limits.max_bytes:
            raise too_large
        yield chunk


async def _read_form(request: Request, boundary: bytes, limits: UploadLimits) -> list[UploadedFile]:
    if not boundary:
        raise InvalidRequestError("the content type multipart/form-data lacks its boundary")
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
        raise InvalidRequestError(f"the form is malformed: {error}") from error
    if not form.complete:
        raise InvalidRequestError("the form is empty or cut off before its closing boundary")
    return form.parts


class _Form:
    """Collects what the parser calls back with."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[UploadedFile] = []
        self.complete = False
        self._max_parts = max_parts
        self._header = bytearray()
        self._value = bytearray()

    def begin_part(self) -> None:
        if len(self.parts) == self._max_parts:
            raise RequestBodyTooLarge(f"the form has more than {self._max_parts} parts")
        self.parts.append(UploadedFile())

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
