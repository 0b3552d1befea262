"""Receive what the client of an inference request sends: its body, the images in it, and its disconnect.

A body over its limit is rejected while it is being read. Everything stays in memory: Starlette's form parser
writes parts over 1 MB to temporary files, which a read-only container does not have, and its limit on bodies
responds with plain text instead of a problem.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableSequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Self, TypeVar

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from resnet_service.errors import (
    InvalidRequestError,
    OverloadedError,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)
from resnet_service.inference.request_timing import RequestTiming
from resnet_service.inference.served_model import ImageReservation
from resnet_service.settings import Settings

Result = TypeVar("Result")

_WATCH_AFTER_S: Final = 0.05
"""Shorter work is not watched for a disconnect: the task for it costs more than it could save."""
_MIN_WAIT_S: Final = 0.001
"""A shorter wait is not recorded: without overload, `start` returns at once."""
_MAX_RECEIVE_S: Final = 0.5
"""Time for which a request counts as concurrent while its body is received."""

FIELD: Final = "file"
"""The form field that images are uploaded in."""


class UploadMemory:
    """The bytes of the request bodies in memory: at most `limit`, over all requests of all processes.

    Each process has a counter in `counters`, which may be shared memory, and `index` is that of this one. Two
    processes that add at the same time can exceed the limit by one read of a socket.
    """

    def __init__(
        self, limit: int, counters: "MutableSequence[int] | memoryview[int] | None" = None, index: int = 0
    ) -> None:
        self.limit = limit
        self._counters = [0] if counters is None else counters
        self._index = index

    @property
    def used(self) -> int:
        """The bytes that this process has in memory."""
        return self._counters[self._index]

    def add(self, size: int) -> None:
        """Add `size` bytes; raises OverloadedError if all requests together would exceed the limit."""
        if sum(self._counters) + size > self.limit:
            raise OverloadedError(f"upload memory limit reached ({self.limit:,} bytes)", "memory", 1.0)
        self._counters[self._index] += size

    def remove(self, size: int) -> None:
        """Remove `size` bytes."""
        self._counters[self._index] -= size

    def account(self) -> "UploadAccount":
        """Return the account of one request."""
        return UploadAccount(self)


class UploadAccount:
    """The part of the upload memory that one request uses, until the end of the `with` block."""

    def __init__(self, memory: UploadMemory) -> None:
        self.used = 0
        self._memory = memory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.remove(self.used)

    def acquire(self, size: int) -> None:
        """Add `size` bytes. Raises what `UploadMemory.add` raises."""
        self._memory.add(size)
        self.used += size


@dataclass
class UploadedFile:
    """One part of a form: the name of its field, the client's file name (never opened), and its bytes."""

    name: str = ""
    filename: str | None = None
    data: bytearray = field(default_factory=bytearray)


class Upload:
    """The body of one request, read once the limit on concurrent requests allows it.

    Until then, the body stays in the socket. Its bytes count as upload memory until the end of the request.
    The wait is the stage `wait`, and the time to read it the stage `read`.

        images = await Upload(request, settings, account, reservation).images()
    """

    def __init__(
        self,
        request: Request,
        settings: Settings,
        account: UploadAccount,
        reservation: ImageReservation,
    ) -> None:
        self._request = request
        self._account = account
        self._reservation = reservation
        self._max_bytes = settings.max_body_bytes
        self._max_parts = settings.max_images_per_request
        self._timeout_s = settings.read_timeout_s

    async def images(self) -> list[UploadedFile]:
        """Return the `file` parts of a form, or the body as one image if its content type is an image's.

        Raises UnsupportedMediaType for any other content type, InvalidRequestError if the form is malformed
        or has no `file` part, and what `body` raises.
        """
        content_type, options = parse_options_header(self._request.headers.get("content-type"))
        if content_type == b"multipart/form-data":
            parts = await self._receive(partial(self._form, options.get(b"boundary", b"")))
        elif content_type.startswith(b"image/") or content_type == b"application/octet-stream":
            parts = [UploadedFile(name=FIELD, data=await self.body())]
        else:
            raise UnsupportedMediaType(
                f"send multipart/form-data with the field {FIELD!r}, or an image with an image/* content type"
            )
        images = [part for part in parts if part.name == FIELD]
        if not images:
            fields = ", ".join(sorted({repr(part.name) for part in parts})) or "no fields"
            raise InvalidRequestError(f"the form has no field {FIELD!r}; it has {fields}")
        return images

    async def body(self) -> bytearray:
        """Return the complete request body.

        Raises UnsupportedMediaType if it is compressed, PayloadTooLarge or RequestTimeout if a limit is
        exceeded, OverloadedError if the upload memory is full, ClientDisconnect if the client disconnects,
        and what `Reservation.start` raises.
        """
        return await self._receive(self._body)

    async def _receive(self, read: Callable[[], Awaitable[Result]]) -> Result:
        """Wait until the request may be read, and read its body; the deadline does not include it."""
        if (encoding := self._request.headers.get("content-encoding", "identity").lower()) != "identity":
            raise UnsupportedMediaType(f"Content-Encoding {encoding[:50]!r} is not supported; send it as is")
        declared = self._request.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared) > self._max_bytes:
            raise self._too_large()
        timing, arrived = request_timing(self._request), time.perf_counter()
        await self._reservation.start()
        started = time.perf_counter()
        if started - arrived > _MIN_WAIT_S:
            timing.record("wait", arrived, started)
        # Otherwise, slow clients could reach the limit on concurrent requests.
        timer = asyncio.get_running_loop().call_later(_MAX_RECEIVE_S, self._reservation.suspend)
        try:
            async with asyncio.timeout(self._timeout_s):
                result = await read()
        except TimeoutError as error:
            raise RequestTimeout(f"the request body was not received within {self._timeout_s:g} s") from error
        finally:
            timer.cancel()
        self._reservation.extend(time.perf_counter() - started)
        timing.record("read", started, time.perf_counter())
        await self._reservation.start()  # again, if the client was slow
        return result

    async def _body(self) -> bytearray:
        body = bytearray()
        async for chunk in self._chunks():
            body += chunk
        return body

    async def _chunks(self) -> AsyncIterator[bytes]:
        received = 0
        async for chunk in self._request.stream():
            received += len(chunk)
            if received > self._max_bytes:
                raise self._too_large()
            self._account.acquire(len(chunk))
            yield chunk

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the request body is larger than {self._max_bytes:,} bytes")

    async def _form(self, boundary: bytes) -> list[UploadedFile]:
        if not boundary:
            raise InvalidRequestError("the content type multipart/form-data has no boundary")
        form = _Form(self._max_parts)
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
            async for chunk in self._chunks():
                parser.write(chunk)
            parser.finalize()
        except FormParserError as error:
            raise InvalidRequestError(f"malformed form: {error}") from error
        if not form.is_complete:
            raise InvalidRequestError("the form is empty or ends before its closing boundary")
        return form.parts


def request_timing(request: Request) -> RequestTiming:
    """Return the timing record of a request, which `ObservabilityMiddleware` creates."""
    timing: RequestTiming = request.scope["timing"]
    return timing


async def cancel_on_disconnect(request: Request, work: Awaitable[Result]) -> Result:
    """Await `work`, and cancel it if the client disconnects. The request body must have been read.

    Raises ClientDisconnect if the client disconnects.
    """
    task = asyncio.current_task()
    assert task is not None
    is_disconnected = False

    async def watch() -> None:
        nonlocal is_disconnected
        while (await request.receive())["type"] != "http.disconnect":
            pass
        is_disconnected = True
        task.cancel()

    watchers: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()
    timer = loop.call_later(_WATCH_AFTER_S, lambda: watchers.append(loop.create_task(watch())))
    try:
        return await work
    except asyncio.CancelledError as error:
        if is_disconnected and task.uncancel() == 0:
            raise ClientDisconnect from error
        raise
    finally:
        timer.cancel()
        for watcher in watchers:
            watcher.cancel()


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
            raise PayloadTooLarge(f"the form has more than {self._max_parts} parts")
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
