"""The reservation of one request of an HTTP worker, and the images that the main process runs for it."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, Self

from resnet_service.batching import BatchResult, ConcurrencyLimiter, Lane
from resnet_service.errors import DeadlineExceededError
from resnet_service.inference.served_model import QueuedCrop
from resnet_service.runtimes import TopKResult
from resnet_service.server.workers.calls import decode_error
from resnet_service.server.workers.frames import Frame, FrameChannel, Kind
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
    result: asyncio.Future[BatchResult[TopKResult]]


class RunningImages:
    """The images of one model that the main process runs, and the number of requests that use the model."""

    def __init__(self, slots: Slots, pool: SlotPool, devices: list[str]) -> None:
        self.pool = pool
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
        self._images[token] = _RunningImage(slot, lane, result)
        return result

    def finish(self, frame: Frame) -> None:
        """Handle the answer to a RUN."""
        slot, lane, result = self._images.pop(frame.token)
        if not result.done():
            if frame.kind == Kind.FAILED:
                result.set_exception(decode_error(frame.payload))
            else:
                best = self._slots.read_result(slot, frame.number, self._devices[frame.reservation])
                result.set_result(BatchResult(best, frame.a, frame.b, frame.c, frame.slot))
        self.pool.put_back(slot, lane)

    def fail_all(self, error: Exception) -> None:
        """Fail all images that run."""
        for _, _, result in self._images.values():
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

    def take_unreserved(self, timeout_s: float) -> bool:
        """Return whether a request with this timeout needs no reservation now, and count it if so."""
        ...

    def put_back_unreserved(self) -> None:
        """End a request that needed no reservation."""
        ...

    def images(self, generation: int) -> RunningImages:
        """Return the images of a model."""
        ...

    def run_image(self, frame: Frame, images: RunningImages) -> None:
        """Send a RUN, whose answer `images` gets."""
        ...


class RemoteReservation:
    """Implements `ImageReservation` for a worker: asks the main process, unless there is little to do.

    `resnet_service.batching.Reservation` describes the methods. `generation` is that of the model to use.

        async with RemoteReservation(main, timeout_s=30, lane=Lane.BULK, generation=1) as reservation:
            await reservation.start()
            result = await reservation.run(prepare)
    """

    def __init__(self, main: MainProcess, timeout_s: float, lane: Lane, generation: int) -> None:
        self.generation = generation
        self.lane = lane
        self._admitted_at = asyncio.get_running_loop().time()
        self._deadline = self._admitted_at + timeout_s
        self._main = main
        self._number = 0  # of the reservation in the main process, if there is one
        # The main process publishes the estimated wait of interactive requests.
        self._is_unreserved = lane is Lane.INTERACTIVE and main.take_unreserved(timeout_s)
        self._is_started = self._is_unreserved
        self._has_slot = False

    @property
    def deadline(self) -> float | None:
        """See `Reservation`."""
        return self._deadline

    async def __aenter__(self) -> Self:
        """Reserve. Raises what `Engine.reserve` raises."""
        if not self._is_unreserved:
            await self._reserve(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Release."""
        if self._number:
            self._main.channel.send(Frame(Kind.RELEASE, reservation=self._number), is_urgent=False)
        elif self._is_unreserved:
            self._main.put_back_unreserved()

    def extend(self, seconds: float) -> None:
        """See `Reservation`."""
        self._admitted_at += seconds
        self._deadline += seconds

    def limit(self, seconds: float) -> None:
        """See `Reservation`: the main process gets the deadline with each image."""
        self._deadline = min(self._deadline, self._admitted_at + seconds)

    async def start(self) -> None:
        """See `Reservation`."""
        if self._is_started:
            return
        if not self._number:  # suspended, and not known to the main process yet
            await self._reserve(self.generation)
        if not self._is_started:
            await self._ask(Kind.START)
            self._is_started = self._has_slot = True

    def suspend(self) -> None:
        """See `Reservation`."""
        if self._number:
            self._main.channel.send(Frame(Kind.SUSPEND, reservation=self._number))
        elif self._is_unreserved:
            self._main.put_back_unreserved()
        self._is_started = self._has_slot = self._is_unreserved = False

    async def run(self, prepare: Callable[[], Awaitable[QueuedCrop]]) -> BatchResult[TopKResult]:
        """See `Reservation`."""
        has_slot, self._has_slot = self._has_slot, False
        images, slot = self._main.images(self.generation), None
        timer = asyncio.timeout_at(self._deadline)
        try:
            queued = await prepare()
            async with timer:
                lane = self.lane
                slot = await images.pool.take(lane)
                token = self._main.new_token()
                result = images.add(token, slot, lane, queued)
                self._main.run_image(self._run_frame(token, slot, queued.top_k), images)
                return await result
        except BaseException as error:
            if slot is None:
                if has_slot:
                    self._main.channel.send(Frame(Kind.DROP, reservation=self._number))
            elif result.cancelled():
                self._main.channel.send(Frame(Kind.CANCEL, token=token))
            if isinstance(error, TimeoutError) and timer.expired():
                message = "deadline exceeded before inference finished"
                raise DeadlineExceededError(message) from error
            raise

    def _run_frame(self, token: int, slot: int, top_k: int) -> Frame:
        if self._is_unreserved:
            kind, reservation = Kind.RUN_UNRESERVED, self.generation
        else:
            kind, reservation = Kind.RUN, self._number
        return Frame(kind, slot, token, reservation, top_k, self._deadline, lane=self.lane)

    async def _reserve(self, generation: int) -> None:
        """Reserve in the main process, on the current model if `generation` is 0."""
        self._number = self._main.new_token()
        timeout_s = self._deadline - asyncio.get_running_loop().time()
        frame = Frame(Kind.RESERVE, token=self._number, number=generation, a=timeout_s, lane=self.lane)
        try:
            answer = await self._main.ask(frame)
        except BaseException:
            self._main.channel.send(Frame(Kind.RELEASE, reservation=self._number))
            self._number = 0
            raise
        self.generation = answer.number
        self._is_started, self._has_slot = answer.slot == 1, True

    async def _ask(self, kind: Kind) -> None:
        frame = Frame(kind, token=self._main.new_token(), reservation=self._number, a=self._deadline)
        await self._main.ask(frame)
