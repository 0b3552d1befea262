"""The reservation of one request of an HTTP worker, and its images that the main process runs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, Self

from resnet_service.batching import BatchResult, Lane
from resnet_service.errors import DeadlineExceededError
from resnet_service.inference.served_model import QueuedCrop
from resnet_service.runtimes import TopKResult
from resnet_service.server.workers.frames import Frame, FrameChannel, Kind
from resnet_service.server.workers.remote_model import RemoteModel, RunningImages


class MainProcess(Protocol):
    """What a reservation needs from the connection to the main process."""

    channel: FrameChannel

    def new_token(self) -> int:
        """Return the number of a request to the main process."""
        ...

    async def ask(self, frame: Frame) -> Frame:
        """Send a request, and return its answer."""
        ...

    def images(self, generation: int) -> RunningImages:
        """Return the images of a model."""
        ...

    def run_image(self, frame: Frame, images: RunningImages) -> None:
        """Send a RUN, whose answer `images` gets."""
        ...


class RemoteReservation:
    """Implements `ImageReservation` for a worker: asks the main process, unless there is little to do.

    `resnet_service.batching.Reservation` describes the methods. `generation` is that of the engine, which may
    be a newer one than that of `model`.

        async with RemoteReservation(main, model, timeout_s=30, lane=Lane.BULK) as reservation:
            await reservation.start()
            result = await reservation.run(prepare)
    """

    def __init__(self, main: MainProcess, model: RemoteModel, timeout_s: float, lane: Lane) -> None:
        self.generation = model.update.generation
        self.lane = lane
        self._admitted_at = asyncio.get_running_loop().time()
        self._deadline = self._admitted_at + timeout_s
        self._main = main
        self._model = model
        self._number = 0  # of the reservation in the main process, if there is one
        # The main process publishes the estimated wait of interactive requests.
        self._is_unreserved = lane is Lane.INTERACTIVE and model.take_unreserved(timeout_s)
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
            self._model.put_back_unreserved()

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
            self._model.put_back_unreserved()
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
                self._main.run_image(self._run_frame(token, slot, queued), images)
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

    def _run_frame(self, token: int, slot: int, queued: QueuedCrop) -> Frame:
        if self._is_unreserved:
            kind, reservation = Kind.RUN_UNRESERVED, self.generation
        else:
            kind, reservation = Kind.RUN, self._number
        b = float(queued.with_embedding)
        return Frame(kind, slot, token, reservation, queued.top_k, self._deadline, b, lane=self.lane)

    async def _reserve(self, generation: int) -> None:
        """Reserve in the main process, on the engine that serves the version now if `generation` is 0."""
        self._number = self._main.new_token()
        timeout_s = self._deadline - asyncio.get_running_loop().time()
        index = self._model.update.index
        frame = Frame(
            Kind.RESERVE, slot=index, token=self._number, number=generation, a=timeout_s, lane=self.lane
        )
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
