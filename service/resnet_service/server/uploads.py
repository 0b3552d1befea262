"""Receive what the client of an inference request sends: its body, the images in it, and its disconnect.

A body over its limit is rejected while it is being read. Everything stays in memory. Starlette's limit on
bodies responds with plain text instead of a problem.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, MutableSequence
from functools import partial
from typing import Final, Self, TypeVar

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect

from resnet_service.batching import Lane
from resnet_service.errors import (
    OverloadedError,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)
from resnet_service.inference.request_timing import RequestTiming
from resnet_service.inference.served_model import ImageReservation, ReceivingRequest
from resnet_service.server.forms import FIELD, Form, FormParser, UploadedFile
from resnet_service.settings import Settings

Result = TypeVar("Result")

_WATCH_AFTER_S: Final = 0.05
"""Shorter work is not watched for a disconnect: the task for it costs more than it could save."""
_MIN_WAIT_S: Final = 0.001
"""A shorter wait is not recorded: without overload, `start` returns at once."""
_RAW_BODY: Final = frozenset(
    (b"", b"application/octet-stream", b"binary/octet-stream", b"application/x-www-form-urlencoded")
)
"""Content types of images beside image/*: of clients that set none, of S3, and of `curl --data-binary`."""
_MAX_RECEIVE_S: Final = 0.5
"""Time for which a request counts as concurrent while its body is received."""


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

    @property
    def is_scarce(self) -> bool:
        """Whether all processes together use more than half of the limit."""
        return sum(self._counters) > self.limit // 2

    def add(self, size: int, lane: Lane, own: int) -> None:
        """Add `size` bytes to the `own` ones of a request.

        Raises OverloadedError if all requests together would exceed the limit. For bulk requests, which keep
        their bytes while others are decoded, it is half of that, unless one is alone.
        """
        used = sum(self._counters)
        limit = self.limit // 2 if lane is Lane.BULK and used > own else self.limit
        if used + size > limit:
            raise OverloadedError(f"upload memory limit reached ({limit:,} bytes)", "memory", 1.0)
        self._counters[self._index] += size

    def remove(self, size: int) -> None:
        """Remove `size` bytes."""
        self._counters[self._index] -= size

    def account(self, lane: Lane) -> "UploadAccount":
        """Return the account of one request."""
        return UploadAccount(self, lane)


class UploadAccount:
    """The part of the upload memory that one request uses, until the end of the `with` block."""

    def __init__(self, memory: UploadMemory, lane: Lane) -> None:
        self.used = 0
        self._lane = lane
        self._memory = memory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.remove(self.used)

    def acquire(self, size: int) -> None:
        """Add `size` bytes. Raises what `UploadMemory.add` raises."""
        self._memory.add(size, self._lane, self.used)
        self.used += size


class Upload:
    """The body of one request, read once the limit on concurrent requests allows it.

    Until then, the body stays in the socket. Its bytes count as upload memory until the end of the request.
    The wait is the stage `wait`, and the time to read it the stage `read`.

        form = await Upload(request, settings, account, reservation).form({"top_k"})
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
        self._max_images = settings.max_images_per_request
        self._timeout_s = settings.read_timeout_s

    async def form(self, fields: Collection[str]) -> Form:
        """Return the form, or the body as one image if its content type is one of `_RAW_BODY` or an image's.

        `fields` has the names of the fields that the form may have beside `file`. Raises UnsupportedMediaType
        for any other content type, and if there is neither a content type nor a body; and what `FormParser`
        and `body` raise.
        """
        content_type, options = parse_options_header(self._request.headers.get("content-type"))
        if content_type == b"multipart/form-data":
            return await self._receive(partial(self._form, options.get(b"boundary", b""), fields))
        if content_type.startswith(b"image/") or content_type in _RAW_BODY:
            body = await self.body()
            if body or content_type:
                return Form([UploadedFile(data=body)])
        raise UnsupportedMediaType(
            f"send multipart/form-data with the field {FIELD!r}, or an image with an image/* content type"
        )

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
        return await receive_upload(read, self._reservation, request_timing(self._request), self._timeout_s)

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

    async def _form(self, boundary: bytes, fields: Collection[str]) -> Form:
        parser = FormParser(boundary, self._max_images, fields)
        async for chunk in self._chunks():
            parser.write(chunk)
        return parser.finish()


async def receive_upload(
    read: Callable[[], Awaitable[Result]],
    reservation: ReceivingRequest,
    timing: RequestTiming,
    timeout_s: float,
    *,
    arrived: float | None = None,
    max_extension_s: float = math.inf,
) -> Result:
    """Await `read` once the limit on concurrent requests allows it, and return its result.

    `arrived` is the time of `time.perf_counter` since which the request waits, by default now.
    The wait is the stage `wait`, and the time to read the stage `read`. The deadline does not include the
    latter, up to `max_extension_s` seconds. Raises RequestTimeout if it takes longer than `timeout_s`
    seconds, and what `read` and `Reservation.start` raise.
    """
    arrived = time.perf_counter() if arrived is None else arrived
    await reservation.start()
    started = time.perf_counter()
    record_wait(timing, arrived, started)
    # Otherwise, slow clients could reach the limit on concurrent requests.
    timer = asyncio.get_running_loop().call_later(_MAX_RECEIVE_S, reservation.suspend)
    try:
        async with asyncio.timeout(timeout_s):
            result = await read()
    except TimeoutError as error:
        raise RequestTimeout(f"the request body was not received within {timeout_s:g} s") from error
    finally:
        timer.cancel()
        timing.record("read", started, time.perf_counter())
    reservation.extend(min(time.perf_counter() - started, max_extension_s))
    await reservation.start()  # again, if the client was slow
    return result


def record_wait(timing: RequestTiming, arrived: float, started: float) -> None:
    """Record the time for which a request has waited for others, unless it is too short to matter."""
    if started - arrived > _MIN_WAIT_S:
        timing.record("wait", arrived, started)


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
