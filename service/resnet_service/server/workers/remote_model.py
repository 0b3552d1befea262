"""A version of a model in an HTTP worker: its slots, its images that run, and its requests."""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from resnet_service.batching import BatchResult, ConcurrencyLimiter, Lane
from resnet_service.inference.served_model import QueuedCrop, ServedModel
from resnet_service.runtimes import TopKResult
from resnet_service.server.workers.calls import ModelUpdate, decode_error
from resnet_service.server.workers.frames import Frame, Kind
from resnet_service.server.workers.shared_memory import Slots


class SlotPool:
    """The slots that are free. One is in use until the main process has answered for it."""

    def __init__(self, count: int) -> None:
        self._free = deque(range(count))
        self._permits = ConcurrencyLimiter(count)

    async def take(self, lane: Lane) -> int:
        """Wait for a free slot, interactive images first, and return its number."""
        await self._permits.acquire(None, lane)
        return self._free.pop()  # the last one used: it is in the processor's cache

    def put_back(self, slot: int, lane: Lane) -> None:
        """Return a slot."""
        self._free.append(slot)
        self._permits.release(lane)


class _RunningImage(NamedTuple):
    slot: int
    lane: Lane
    embedding_size: int | None
    result: asyncio.Future[BatchResult[TopKResult]]


class RunningImages:
    """The images of one model that the main process runs, and the number of requests that use the model."""

    def __init__(self, slots: Slots, pool: SlotPool, devices: list[str], embedding_size: int | None) -> None:
        self.pool = pool
        self._embedding_size = embedding_size
        self._requests = 0
        self._slots = slots
        self._devices = devices
        self._images: dict[int, _RunningImage] = {}
        self._idle = asyncio.Event()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Count one request until the end of the block."""
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1
            if not self._requests:
                self._idle.set()

    async def wait_until_idle(self) -> None:
        """Wait until no request uses the model."""
        while self._requests:
            self._idle.clear()
            await self._idle.wait()

    def add(
        self, token: int, slot: int, lane: Lane, queued: QueuedCrop
    ) -> asyncio.Future[BatchResult[TopKResult]]:
        """Write a crop to a slot, and return the future of its result."""
        self._slots.crops[slot][:] = queued.crop
        result: asyncio.Future[BatchResult[TopKResult]] = asyncio.get_running_loop().create_future()
        embedding_size = self._embedding_size if queued.with_embedding else None
        self._images[token] = _RunningImage(slot, lane, embedding_size, result)
        return result

    def finish(self, frame: Frame) -> None:
        """Handle the answer to a RUN."""
        slot, lane, embedding_size, result = self._images.pop(frame.token)
        if not result.done():
            if frame.kind == Kind.FAILED:
                result.set_exception(decode_error(frame.payload))
            else:
                device = self._devices[frame.reservation]
                best = self._slots.read_result(slot, frame.number, device, embedding_size)
                result.set_result(BatchResult(best, frame.a, frame.b, frame.c, frame.slot))
        self.pool.put_back(slot, lane)

    def fail_all(self, error: Exception) -> None:
        """Fail all images that run."""
        for image in self._images.values():
            if not image.result.done():
                image.result.set_exception(type(error)(*error.args))


class RemoteModel:
    """A version that the main process runs.

    update: what the main process has sent.
    served: the model as requests use it.
    images: its images that run.
    """

    def __init__(
        self,
        update: ModelUpdate,
        served: ServedModel,
        images: RunningImages,
        open_wait_s: "Sequence[float] | memoryview[float]",
    ) -> None:
        """`open_wait_s` is that of `SharedMemory`."""
        self.update = update
        self.served = served
        self.images = images
        self._open_wait_s = open_wait_s
        self._unreserved = 0

    def take_unreserved(self, timeout_s: float) -> bool:
        """Return whether a request with this timeout needs no reservation now, and count it if so."""
        update = self.update
        if self._unreserved >= update.unreserved or self._open_wait_s[update.index] >= timeout_s:
            return False
        self._unreserved += 1
        return True

    def put_back_unreserved(self) -> None:
        """End a request that needed no reservation."""
        self._unreserved -= 1
