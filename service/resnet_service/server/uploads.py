"""Read request bodies and the images in them, within limits, in memory only.

A body over its limit is rejected while it is being read; nothing is written to temporary files.
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
"""The form field that images are uploaded in."""


@dataclass(frozen=True)
class UploadLimits:
    """Limits on one request body: its size, the parts of a form, and the time the client has to send it."""

    max_bytes: int
    max_parts: int
    timeout_s: float

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the limits set in the settings."""
        return cls(
            int(settings.max_upload_mb * 1e6), settings.max_images_per_request, settings.read_timeout_s
        )


def mark_body_discarded(scope: Scope) -> None:
    """Mark the rest of a request's body as discarded: it is read, but does not count as upload memory."""
    scope["body_discarded"] = True


def is_body_discarded(scope: Scope) -> bool:
    """Return whether `mark_body_discarded` has been called for this request."""
    return "body_discarded" in scope


class UploadMemory:
    """The bytes of the request bodies in memory, over all requests: `used`, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def acquire(self, size: int) -> None:
        """Add `size` bytes to the used memory; raises OverloadedError if that would exceed the limit."""
        if self.used + size > self.limit:
            raise OverloadedError(f"upload memory limit reached ({self.limit:,} bytes)", "memory", 1.0)
        self.used += size

    def release(self, size: int) -> None:
        """Subtract `size` bytes from the used memory."""
        self.used -= size


@dataclass
class UploadedFile:
    """One part of a form: the name of its field, the client's file name (never opened), and its bytes."""

    name: str = ""
    filename: str | None = None
    data: bytearray = field(default_factory=bytearray)


async def read_images(request: Request, limits: UploadLimits) -> list[UploadedFile]:
    """Return the `file` parts of a form, or the body as one image if its content type is an image's.

    Raises UnsupportedMediaType for any other content type, InvalidRequestError if the form is malformed or
    has no `file` part, and what `read_body` raises.
    """
    content_type, options = parse_options_header(request.headers.get("content-type"))
    if content_type == b"multipart/form-data":
        async with _timeout(limits):
            parts = await _read_form(request, options.get(b"boundary", b""), limits)
    elif content_type.startswith(b"image/") or content_type == b"application/octet-stream":
        parts = [UploadedFile(name=FIELD, data=await read_body(request, limits))]
    else:
        raise UnsupportedMediaType(
            f"send multipart/form-data with the field {FIELD!r}, or an image with an image/* content type"
        )
    images = [part for part in parts if part.name == FIELD]
    if not images:
        fields = ", ".join(sorted({repr(part.name) for part in parts})) or "no fields"
        raise InvalidRequestError(f"the form has no field {FIELD!r}; it has {fields}")
    return images


async def read_body(request: Request, limits: UploadLimits) -> bytearray:
    """Return the complete request body.

    Raises RequestBodyTooLarge or RequestTimeout if a limit is exceeded, OverloadedError if the upload memory
    is full, and ClientDisconnect if the client disconnects.
    """
    body = bytearray()
    async with _timeout(limits):
        async for chunk in _chunks(request, limits):
            body += chunk
    return body


@asynccontextmanager
async def _timeout(limits: UploadLimits) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(limits.timeout_s):
            yield
    except TimeoutError as error:
        raise RequestTimeout(f"the request body was not received within {limits.timeout_s:g} s") from error


async def _chunks(request: Request, limits: UploadLimits) -> AsyncIterator[bytes]:
    too_large = RequestBodyTooLarge(f"the request body is larger than {limits.max_bytes:,} bytes")
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
        raise InvalidRequestError("the content type multipart/form-data has no boundary")
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
        raise InvalidRequestError(f"malformed form: {error}") from error
    if not form.is_complete:
        raise InvalidRequestError("the form is empty or ends before its closing boundary")
    return form.parts


class _Form:
    """Collects the parts of a form from the callbacks of the parser."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[UploadedFile] = []
        self.is_complete = False
        self._max_parts = max_parts
        self._header_name = bytearray()
        self._header_value = bytearray()

    def begin_part(self) -> None:
        if len(self.parts) == self._max_parts:
            raise RequestBodyTooLarge(f"the form has more than {self._max_parts} parts")
        self.parts.append(UploadedFile())

    def add_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data += memoryview(data)[start:end]

    def add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._header_value))
            self.parts[-1].name = options.get(b"name", b"").decode("utf-8", "replace")
            if b"filename" in options:
                self.parts[-1].filename = options[b"filename"].decode("utf-8", "replace")
        self._header_name.clear()
        self._header_value.clear()

    def end(self) -> None:
        self.is_complete = True
