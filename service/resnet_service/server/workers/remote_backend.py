"""The backend in an HTTP worker: the main process has the devices."""

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, cast

import structlog

from resnet_service.batching import Lane
from resnet_service.errors import ServiceUnavailable
from resnet_service.inference.image_decoder import ImageDecoder
from resnet_service.inference.served_model import ImageReservation, ServedModel
from resnet_service.inference.statistics import RequestCounters
from resnet_service.metrics import Metrics
from resnet_service.models import ModelVersion
from resnet_service.schemas import ModelStatus
from resnet_service.server.auth import APIKeys
from resnet_service.server.backend import Admission
from resnet_service.server.heartbeat import Heartbeat
from resnet_service.server.model_table import ModelTable
from resnet_service.server.workers.calls import ModelUpdate, Update, decode_error
from resnet_service.server.workers.frames import Frame, FrameChannel, Kind
from resnet_service.server.workers.remote_calls import RemoteCalls
from resnet_service.server.workers.remote_model import RemoteModel, RunningImages, SlotPool
from resnet_service.server.workers.remote_reservation import RemoteReservation
from resnet_service.server.workers.shared_memory import SharedMemory, Slots

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)


class RemoteBackend(RemoteCalls):
    """Implements `Backend` by asking the main process; see there for the methods."""

    def __init__(
        self,
        decoder: ImageDecoder,
        metrics: Metrics,
        memory: SharedMemory,
        index: int,
        *,
        stall_timeout_s: float,
        on_drain: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        """Create the backend of the worker with this index, on the running event loop.

        `channel` is the protocol for its socket. `on_drain` is called when the worker has to finish,
        `on_lost` when the main process has ended.
        """
        self.heartbeat = Heartbeat(memory.beats[index : index + 1])
        self.updated = asyncio.Event()
        """Set once there is a model to serve."""
        super().__init__(FrameChannel(self._receive, on_lost))
        self._decoder = decoder
        decoder.start()
        self._metrics = metrics
        self._memory = memory
        self._index = index
        self._stall_timeout_s = stall_timeout_s
        self._on_drain = on_drain
        self._closing = self._is_draining = False
        self._versions: dict[int, RemoteModel] = {}  # by generation
        self._current: dict[ModelVersion, RemoteModel] = {}
        self._indexes: dict[ModelVersion, int] = {}  # in the shared memory, also of unloaded versions
        self._images: dict[int, RunningImages] = {}  # by token
        self._slot_pools: dict[int, SlotPool] = {}  # by offset: the engines of a version share their slots
        self._retiring: dict[int, asyncio.Task[None]] = {}
        self._models: ModelTable
        self._api_keys: APIKeys

    @property
    def models(self) -> ModelTable:
        """See `Backend`."""
        return self._models

    def request_counters(self, key: ModelVersion) -> RequestCounters:
        """See `Backend`."""
        return self._memory.request_counters(self._index, self._indexes[key])

    @property
    def api_keys(self) -> APIKeys:
        """See `Backend`."""
        return self._api_keys

    @property
    def fatal_error(self) -> BaseException | None:
        """See `Backend`: without the main process, the worker ends at once."""
        return None

    @property
    def is_hung(self) -> bool:
        """See `Backend`."""
        return self._decoder.threads.oldest_call_age_s > 2 * self._stall_timeout_s

    def admit(self, key: ModelVersion, timeout_s: float, lane: Lane) -> Admission:
        """See `Backend`."""
        return self._admit(key, timeout_s, lane)

    @asynccontextmanager
    async def _admit(
        self, key: ModelVersion, timeout_s: float, lane: Lane
    ) -> AsyncIterator[tuple[ServedModel, ImageReservation]]:
        if self._closing:
            raise ServiceUnavailable("the service is shutting down")
        self._memory.requests[self._index] += 1
        try:
            async with RemoteReservation(self, self._current[key], timeout_s, lane) as reservation:
                model = self._versions[reservation.generation]
                with model.images.in_use():
                    yield model.served, reservation
        finally:
            self._memory.requests[self._index] -= 1

    async def check_alive(self) -> None:
        """See `Backend`: a decode of this worker hangs, or the main process does."""
        if self._decoder.threads.oldest_call_age_s > self._stall_timeout_s:
            raise ServiceUnavailable("the decoding of a JPEG exceeds the stall timeout")
        await self._check("check_alive")

    async def check_ready(self) -> None:
        """See `Backend`."""
        if self._is_draining:
            raise ServiceUnavailable("the service is warming up, draining or has failed")
        await self._check("check_ready")

    async def model_statuses(self) -> Sequence[ModelStatus]:
        """See `Backend`."""
        statuses = cast(Sequence[ModelStatus], await self._call("model_statuses"))
        if self._is_draining:
            reason = "the service is shutting down"
            changes = {"state": "UNAVAILABLE", "reason": reason}
            return [status.model_copy(update=changes) for status in statuses]
        return statuses

    def start(self) -> None:
        """Do nothing: the main process has started."""

    def report_ready(self) -> None:
        """Tell the main process that the worker accepts connections."""
        self.channel.send(Frame(Kind.READY))

    async def wait_until_warm(self) -> None:
        """Return at once: the main process warms up."""

    def begin_drain(self) -> None:
        """See `Backend`."""
        self._is_draining = True

    async def close(self, timeout_s: float) -> None:
        """See `Backend`."""
        self._closing = True
        models = tuple(self._versions.values())
        idle = [asyncio.ensure_future(model.images.wait_until_idle()) for model in models]
        _, unfinished = await asyncio.wait(idle, timeout=timeout_s)
        for task in unfinished:
            task.cancel()
        error = ServiceUnavailable("the service shut down before the request was finished")
        for future in tuple(self._pending.values()):
            if not future.done():
                future.set_exception(type(error)(*error.args))
        for model in models:
            model.images.fail_all(error)
        await self._decoder.close(timeout_s)

    def images(self, generation: int) -> RunningImages:
        """Return the images of a model that the main process runs."""
        return self._versions[generation].images

    def run_image(self, frame: Frame, images: RunningImages) -> None:
        """Send a RUN, whose answer `images` gets."""
        self._images[frame.token] = images
        self.channel.send(frame)

    def _receive(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.OK | Kind.FAILED:
                images = self._images.pop(frame.token, None)
                if images is not None:
                    images.finish(frame)
                    return
                future = self._pending.get(frame.token)
                if future is None or future.done():
                    return
                if frame.kind == Kind.OK:
                    future.set_result(frame)
                else:
                    future.set_exception(decode_error(frame.payload))
            case Kind.UPDATE:
                self._update(pickle.loads(frame.payload))  # noqa: S301 - from the main process
                self.channel.send(Frame(Kind.UPDATED))
            case Kind.DRAIN:
                self._on_drain()

    def _update(self, update: Update) -> None:
        for added in update.added:
            self._versions[added.generation] = self._create_model(added)
            self._indexes[added.model.key] = added.index
        served = [self._versions[generation] for generation in update.generations]
        self._current = {model.served.key: model for model in served}
        self._models = ModelTable({key: model.served for key, model in self._current.items()}, update.traffic)
        self._api_keys = update.api_keys
        self.updated.set()
        for generation in self._versions.keys() - set(update.generations) - self._retiring.keys():
            self._retiring[generation] = asyncio.create_task(self._retire(generation))

    def _create_model(self, update: ModelUpdate) -> RemoteModel:
        index = update.index
        served = ServedModel(
            update.model,
            update.placement,
            update.max_batch,
            self._decoder,
            self._metrics,
            lambda: self._memory.largest_batch[index],
            update.predictions,
        )
        slots = Slots(self._memory.fd, update.slots, update.model.preprocessing.crop)
        pool = self._slot_pools.setdefault(update.slots.offset, SlotPool(update.slots.count))
        images = RunningImages(slots, pool, update.placement.devices.split(","), update.model.embedding_size)
        return RemoteModel(update, served, images, self._memory.open_wait_s)

    async def _retire(self, generation: int) -> None:
        """Forget a replaced model once no request can use it any more."""
        await self._versions[generation].images.wait_until_idle()
        slots = self._versions.pop(generation).update.slots
        del self._retiring[generation]
        if all(model.update.slots != slots for model in self._versions.values()):
            del self._slot_pools[slots.offset]
        self.channel.send(Frame(Kind.RETIRED, number=generation))
