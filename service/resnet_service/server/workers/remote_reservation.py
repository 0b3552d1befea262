"""The reservation of one request of an HTTP worker, and the images that the main process runs for it."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from resnet_service.batching import BatchResult
from resnet_service.errors import DeadlineExceededError
from resnet_service.inference.served_model import QueuedCrop
from resnet_service.runtimes import TopKResult
from resnet_service.server.workers.calls import decode_error
from resnet_service.server.workers.frames import Frame, FrameChannel, Kind
from resnet_service.server.workers.shared_memory import Slots


class SlotPool:
    """The slots that are free. A slot is in use until the main process has answered, even if nobody waits."""

    def __init__(self, count: int) -> None:
        self._free = deque(range(count))
        self._permits = asyncio.Semaphore(count)

    async def take(self) -> int:
        """Wait for a free slot, and return its number."""
        await self._permits.acquire()
        return self._free.pop()  # the last one used: it is in the processor's cache

    def put_back(self, slot: int) -> None:
        """Return a slot."""
        self._free.append(slot)
        self._permits.release()


class _RunningImage(NamedTuple):
    slot: int
    result: asyncio.Future[BatchResult[TopKResult]]


class RunningImages:
    """The images of one model that the main process runs, and the requests that may add more.

    requests: the number of requests that use the model.
    """

    def __init__(self, slots: Slots, pool: SlotPool, devices: list[str]) -> None:
        self.requests = 0
        self.pool = pool
        self._slots = slots
        self._devices = devices
        self._images: dict[int, _RunningImage] = {}
        self._idle = asyncio.Event()

    def enter(self) -> None:
        """Begin a request."""
        self.requests += 1

    def leave(self) -> None:
        """End a request."""
        self.requests -= 1
        if not self.requests:
            self._idle.set()

    async def wait_until_idle(self) -> None:
        """Wait until no request uses the model."""
        while self.requests:
            self._idle.clear()
            await self._idle.wait()

    def add(self, token: int, slot: int, crop: QueuedCrop) -> asyncio.Future[BatchResult[TopKResult]]:
        """Write a crop to a slot, and return the future of its result."""
        self._slots.crops[slot][:] = crop.crop
        result: asyncio.Future[BatchResult[TopKResult]] = asyncio.get_running_loop().create_future()
        self._images[token] = _RunningImage(slot, result)
        return result

    def finish(self, frame: Frame) -> None:
        """Handle the answer to a RUN."""
        slot, result = self._images.pop(frame.token)
        if not result.done():
            if frame.kind == Kind.FAILED:
                result.set_exception(decode_error(frame.payload))
            else:
                best = self._slots.read_result(slot, frame.number, self._devices[frame.reservation])
                result.set_result(BatchResult(best, frame.a, frame.b, frame.c, frame.slot))
        self.pool.put_back(slot)

    def fail_all(self, error: Exception) -> None:
        """Fail all images that run."""
        for _, result in self._images.values():
            if not result.done():
                result.set_exception(type(error)(*error.args))


class MainProcess(Protocol):
    """What a reservation needs from the connection to the main process."""

    channel: FrameChannel

    def new_token(self) -> int:
        """Return the number of a request to the main process."""
        ...

    async def ask(self, frame: Frame) -> Frame:
        """Send a request, and return its answer."""
        ...

    def run_image(self, frame: Frame, images: RunningImages) -> None:
        """Send a RUN, whose answer `images` gets."""
        ...


class RemoteReservation:
    """Implements `ImageReservation` with a reservation in the main process, until its RELEASE.

    `resnet_service.batching.Reservation` describes the methods.
    """

    def __init__(
        self, main: MainProcess, images: RunningImages, number: int, deadline: float, *, is_started: bool
    ) -> None:
        self.deadline: float | None = deadline
        self._deadline = deadline
        self._main = main
        self._images = images
        self._number = number
        self._is_started = is_started
        self._has_slot = True

    def extend(self, seconds: float) -> None:
        """See `Reservation`."""
        self._deadline += seconds
        self.deadline = self._deadline

    async def start(self) -> None:
        """See `Reservation`."""
        if not self._is_started:
            await self._ask(Kind.START)
            self._is_started = self._has_slot = True

    def suspend(self) -> None:
        """See `Reservation`."""
        self._is_started = self._has_slot = False
        self._main.channel.send(Frame(Kind.SUSPEND, reservation=self._number))

    async def run(self, prepare: Callable[[], Awaitable[QueuedCrop]]) -> BatchResult[TopKResult]:
        """See `Reservation`."""
        is_further = not self._has_slot
        if is_further:
            await self._ask(Kind.CLAIM)
        self._has_slot = False
        token = self._main.new_token()
        is_queued = False
        timer = asyncio.timeout_at(self._deadline)
        try:
            crop = await prepare()
            async with timer:
                slot = await self._images.pool.take()
                result = self._images.add(token, slot, crop)
                frame = Frame(
                    Kind.RUN,
                    slot=slot,
                    token=token,
                    reservation=self._number,
                    number=crop.top_k,
                    a=self._deadline,
                    b=is_further,
                )
                self._main.run_image(frame, self._images)
                is_queued = True
                return await result
        except BaseException as error:
            if not is_queued:
                self._main.channel.send(Frame(Kind.DROP, reservation=self._number, number=is_further))
            elif not result.done() or result.cancelled():
                self._main.channel.send(Frame(Kind.CANCEL, token=token))
            if isinstance(error, TimeoutError) and timer.expired():
                message = "deadline exceeded before inference finished"
                raise DeadlineExceededError(message) from error
            raise

    async def _ask(self, kind: Kind) -> None:
        frame = Frame(kind, token=self._main.new_token(), reservation=self._number, a=self._deadline)
        await self._main.ask(frame)
