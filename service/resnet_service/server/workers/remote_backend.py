"""The backend in an HTTP worker: the main process has the devices."""

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import structlog

from resnet_service.batching import Lane
from resnet_service.errors import ServiceUnavailable
from resnet_service.inference.image_decoder import ImageDecoder
from resnet_service.inference.served_model import ImageReservation, ServedModel
from resnet_service.inference.statistics import ModelStatistics, RequestCounters
from resnet_service.metrics import Metrics
from resnet_service.models import ModelVersion
from resnet_service.schemas import BenchResponse, InfoResponse, ModelStatus
from resnet_service.server.auth import APIKey, APIKeys
from resnet_service.server.backend import Admission
from resnet_service.server.heartbeat import Heartbeat
from resnet_service.server.model_table import ModelTable
from resnet_service.server.workers.calls import ModelUpdate, Update, decode_error, encode_call
from resnet_service.server.workers.frames import Frame, FrameChannel, Kind
from resnet_service.server.workers.remote_model import RemoteModel, RunningImages, SlotPool
from resnet_service.server.workers.remote_reservation import RemoteReservation
from resnet_service.server.workers.shared_memory import SharedMemory, Slots

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

_HEALTH_TIMEOUT_S: Final = 5.0
"""Time of the main process to answer a probe; its event loop has no step of more than milliseconds."""


class RemoteBackend:
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
        self.channel = FrameChannel(self._receive, on_lost)
        self._decoder = decoder
        decoder.bind_metrics()
        self._metrics = metrics
        self._memory = memory
        self._index = index
        self._stall_timeout_s = stall_timeout_s
        self._on_drain = on_drain
        self._closing = self._is_draining = False
        self._tokens = 0
        self._pending: dict[int, asyncio.Future[Frame]] = {}
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

    async def count_request(self, key: APIKey) -> None:
        """See `Backend`."""
        await self._call("count_request", key.digest.hex())

    async def info(self) -> InfoResponse:
        """See `Backend`."""
        return cast(InfoResponse, await self._call("info"))

    async def model_statuses(self) -> Sequence[ModelStatus]:
        """See `Backend`."""
        statuses = cast(Sequence[ModelStatus], await self._call("model_statuses"))
        if self._is_draining:
            reason = "the service is shutting down"
            changes = {"state": "UNAVAILABLE", "reason": reason}
            return [status.model_copy(update=changes) for status in statuses]
        return statuses

    async def statistics(self) -> Sequence[ModelStatistics]:
        """See `Backend`."""
        return cast(Sequence[ModelStatistics], await self._call("statistics"))

    async def benchmark(self, key: ModelVersion, batch_sizes: list[int], iterations: int) -> BenchResponse:
        """See `Backend`."""
        return cast(BenchResponse, await self._call("benchmark", key, batch_sizes, iterations))

    async def render_metrics(self, accept: str) -> tuple[bytes, str]:
        """See `Backend`: the metrics of all processes."""
        return cast(tuple[bytes, str], await self._call("render_metrics", accept))

    async def reload(self) -> None:
        """See `Backend`."""
        await self._call("reload")

    async def load(self, name: str) -> None:
        """See `Backend`."""
        await self._call("load", name)

    async def unload(self, name: str) -> None:
        """See `Backend`."""
        await self._call("unload", name)

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

    def new_token(self) -> int:
        """Return the number of a request to the main process."""
        self._tokens = self._tokens % 0xFFFF_FFFF + 1
        return self._tokens

    async def ask(self, frame: Frame) -> Frame:
        """Send a request, and return the answer. Raises the error of a FAILED answer.

        If the caller is cancelled, so is the request.
        """
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._pending[frame.token] = future
        self.channel.send(frame)
        try:
            return await future
        except asyncio.CancelledError:
            self.channel.send(Frame(Kind.CANCEL, token=frame.token))
            raise
        finally:
            self._pending.pop(frame.token, None)

    def images(self, generation: int) -> RunningImages:
        """Return the images of a model that the main process runs."""
        return self._versions[generation].images

    def run_image(self, frame: Frame, images: RunningImages) -> None:
        """Send a RUN, whose answer `images` gets."""
        self._images[frame.token] = images
        self.channel.send(frame)

    async def _check(self, name: str) -> None:
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                await self._call(name)
        except TimeoutError as error:
            raise ServiceUnavailable("the main process does not respond") from error

    async def _call(self, name: str, *arguments: Any) -> object:
        payload = encode_call(name, *arguments)
        answer = await self.ask(Frame(Kind.CALL, token=self.new_token(), payload=payload))
        return cast(object, pickle.loads(answer.payload))  # noqa: S301 - from the main process

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
