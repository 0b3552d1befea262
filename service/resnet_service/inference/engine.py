"""The way of one image: decode -> micro-batcher -> runtime -> answer.

Owns the threads: a bounded pool that decodes, and one for each runtime, the only one to talk to it. Knows no
HTTP.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, NamedTuple, TypeVar

import numpy as np
import structlog

from resnet_service import __version__
from resnet_service.batching import MicroBatcher, warm_up
from resnet_service.errors import DeadlineExceededError, DeviceError, ServiceError
from resnet_service.images import DEFAULT_MAX_PIXELS, Crop, decode_image
from resnet_service.inference.worker_pool import WorkerPool
from resnet_service.machine import available_cpus
from resnet_service.metrics import Metrics
from resnet_service.models import Model, validate_probabilities
from resnet_service.runtimes import Runtime, TopKResult

Value = TypeVar("Value")

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)


class _Job(NamedTuple):
    crop: Crop
    top_k: int


class _Result(NamedTuple):
    best: TopKResult
    device: str


@dataclass(frozen=True)
class Classification:
    """An image's best classes, [k], where it ran, and the seconds of each stage it went through.

    `Model.rank` puts labels to the classes.
    """

    best: TopKResult
    device: str
    decode_s: float
    queue_s: float
    device_s: float


class Engine:
    """Serves one model on its runtimes, from `start` to `close`, on one event loop."""

    def __init__(
        self,
        model: Model,
        runtimes: Sequence[Runtime],
        metrics: Metrics,
        *,
        max_batch: int = 32,
        max_queue: int = 256,
        max_wait_s: float = 0.0,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        decode_threads: int | None = None,
        stall_timeout_s: float = 60.0,
    ) -> None:
        self.model = model
        self.runtimes = tuple(runtimes)
        self._metrics = metrics
        self._max_pixels = max_pixels
        self._stall_timeout_s = stall_timeout_s
        self._closing = False
        self._starting: asyncio.Task[None] | None = None
        self._decoders = WorkerPool(decode_threads or available_cpus(), "decode")
        self._devices = {runtime: WorkerPool(1, "device") for runtime in self.runtimes}
        self._device_failure: DeviceError | None = None
        self._batcher: MicroBatcher[_Job, _Result] = MicroBatcher(
            [partial(self._run_batch, runtime) for runtime in self.runtimes],
            max_batch=max_batch,
            max_queue=max_queue,
            max_wait_s=max_wait_s,
            on_failure=_log_failure,
        )
        size = model.preprocessing.crop
        self._dummy_input: Crop = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)

    @property
    def max_batch(self) -> int:
        """The largest batch given to the device."""
        return self._batcher.max_batch

    @property
    def devices(self) -> str:
        """The devices that images run on, with commas between."""
        return ",".join(dict.fromkeys(runtime.device for runtime in self.runtimes))

    @property
    def is_ready(self) -> bool:
        """Whether images are accepted: warmed up, not closing, not failed."""
        return self._is_warm and not self._closing and self.fatal_error is None

    @property
    def fatal_error(self) -> BaseException | None:
        """What has stopped the engine for good: a failed warm-up or a failed device; else None."""
        if self._starting is not None and self._starting.done() and not self._starting.cancelled():
            return self._starting.exception() or self._device_failure or self._batcher.failure
        return self._device_failure or self._batcher.failure

    @property
    def is_stalled(self) -> bool:
        """Whether a batch or an image's decoding has been running for longer than the stall timeout."""
        return self._oldest_call_age_s > self._stall_timeout_s

    @property
    def is_hung(self) -> bool:
        """Whether it has been, after the warm-up, for twice as long: nobody has ended the process yet."""
        return self.is_ready and self._oldest_call_age_s > 2 * self._stall_timeout_s

    @property
    def has_running_calls(self) -> bool:
        """Whether a thread is at work; after `close`, one that has not ended in time."""
        return self._oldest_call_age_s > 0

    @property
    def _oldest_call_age_s(self) -> float:
        return max(thread.oldest_call_age_s for thread in self._threads)

    @property
    def _threads(self) -> tuple[WorkerPool, ...]:
        return (self._decoders, *self._devices.values())

    @property
    def _is_warm(self) -> bool:
        return self._starting is not None and self._starting.done()

    def bind_metrics(self) -> None:
        """Let the metrics tell of this engine, and of no other."""
        metrics = self._metrics
        metrics.queue_depth.set_function(lambda: self._batcher.depth)
        metrics.queue_limit.set(self._batcher.max_queue)
        metrics.largest_batch.set_function(lambda: self._batcher.largest_batch)
        metrics.decode_threads.set(self._decoders.count)
        metrics.decode_running.set_function(lambda: self._decoders.running)
        metrics.decode_waiting.set_function(lambda: self._decoders.waiting)
        metrics.ready.set_function(lambda: self.is_ready)
        metrics.device_streams.set(len(self.runtimes))
        for labeled in (metrics.device_memory, metrics.device_memory_limit, metrics.model_info):
            labeled.clear()
        for runtime in self.runtimes:  # those of one device are the same here
            held = metrics.device_memory.labels(runtime.device)
            held.set_function(partial(_memory, runtime, "held"))
            limit = metrics.device_memory_limit.labels(runtime.device)
            limit.set_function(partial(_memory, runtime, "limit"))
            info = (self.model.name, runtime.device, runtime.precision, runtime.name, __version__)
            metrics.model_info.labels(*info).set(1)

    def start(self) -> None:
        """Begin to warm up in the background; `ready` says when images are accepted."""
        self._starting = asyncio.create_task(self._start())

    async def wait_until_warm(self) -> None:
        """Wait until the warm-up that `start` began is over; raises what it failed with."""
        if self._starting is not None:
            await asyncio.shield(self._starting)

    async def classify(
        self, data: bytes | bytearray, top_k: int, deadline: float | None = None
    ) -> Classification:
        """Classify one encoded image; `deadline` is on the event loop's clock.

        `top_k` is from 1 to the number of classes. Raises what `resnet_service.images.decode` and
        `MicroBatcher.submit` raise.
        """
        decode = partial(decode_image, data, self.model.preprocessing, self._max_pixels)
        return await self.classify_crop(decode, top_k, deadline)

    async def classify_crop(
        self, crop: Crop | Callable[[], Crop], top_k: int, deadline: float | None = None
    ) -> Classification:
        """Classify a crop, [S, S, 3] uint8, or what `crop` makes in a decoding thread, as `classify` does."""
        observe = self._metrics.stage_seconds.labels
        with self._metrics.outcome():
            # Before decoding: what will be rejected costs nothing, and what is decoded is not rejected.
            with self._batcher.reserve(deadline) as reservation, self._metrics.in_flight.track_inprogress():
                started = time.perf_counter()
                made = await self.run_in_decode_pool(deadline, crop) if callable(crop) else crop
                decode_s = time.perf_counter() - started
                answer = await reservation.submit(_Job(made, top_k))
            if callable(crop):
                observe("decode").observe(decode_s)
            observe("queue").observe(answer.queue_s)
            observe("device").observe(answer.run_s)
            of_batch = answer.result.best
            best = TopKResult(of_batch.class_ids[:top_k], of_batch.probabilities[:top_k])
            validate_probabilities(best.probabilities)
            return Classification(best, answer.result.device, decode_s, answer.queue_s, answer.run_s)

    def check_admission(self, deadline: float | None) -> None:
        """Raise what `classify` would raise at once, for whoever has work to do before it has the image."""
        try:
            with self._batcher.reserve(deadline):
                pass
        except ServiceError:
            with self._metrics.outcome():
                raise

    async def run_in_decode_pool(
        self, deadline: float | None, function: Callable[..., Value], *arguments: object
    ) -> Value:
        """Call `function` in a decoding thread; raises DeadlineExceededError where it has not ended in time."""
        try:
            async with asyncio.timeout_at(deadline):
                return await self._decoders.run(function, *arguments)
        except TimeoutError as error:
            raise DeadlineExceededError("the deadline came before the device did") from error

    async def run_benchmark_batch(self, batch_size: int) -> None:
        """Run one batch of noise on the first device, between the batches of requests."""
        await self._run_dummy_batch(self.runtimes[0], batch_size)

    def begin_drain(self) -> None:
        """Stop being ready; requests on open connections are still answered."""
        self._closing = True

    async def close(self, timeout_s: float) -> None:
        """Reject new images, answer those accepted, and return within twice `timeout_s` seconds."""
        self._closing = True
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
        await self._batcher.close(timeout_s)
        await asyncio.gather(*(thread.close(timeout_s) for thread in self._threads))

    async def _start(self) -> None:
        started = time.perf_counter()
        warmed = await warm_up(self._warm_up, self.max_batch)
        self._batcher.start(warmed)
        seconds = round(time.perf_counter() - started, 2)
        _log.info("ready", largest_batch=warmed.largest_useful_batch, seconds=seconds)

    async def _run_batch(self, runtime: Runtime, jobs: list[_Job]) -> list[_Result]:
        self._metrics.batch_size.observe(len(jobs))
        crops, k = [job.crop for job in jobs], max(job.top_k for job in jobs)
        with self._metrics.batch_seconds.time():
            best = await self._devices[runtime].run(runtime.run, crops, k)
        return [
            _Result(TopKResult(ids, probabilities), runtime.device)
            for ids, probabilities in zip(best.class_ids, best.probabilities, strict=True)
        ]

    async def _warm_up(self, batch_size: int) -> float:
        """Run a batch of noise on each device at once and return the seconds of the slowest."""
        started = time.perf_counter()
        await asyncio.gather(*(self._run_dummy_batch(runtime, batch_size) for runtime in self.runtimes))
        return time.perf_counter() - started

    async def _run_dummy_batch(self, runtime: Runtime, batch_size: int) -> None:
        try:
            best = await self._devices[runtime].run(runtime.run, [self._dummy_input] * batch_size, 1)
            validate_probabilities(best.probabilities[0])
        except DeviceError as error:
            # No batch of a request, whose end the batcher would see: it is the engine's own.
            self._device_failure = error
            raise


def _memory(runtime: Runtime, part: Literal["held", "limit"]) -> int:
    memory = runtime.memory()
    return 0 if memory is None else getattr(memory, part)


def _log_failure(error: BaseException, batch_size: int) -> None:
    _log.error("batch failed", batch_size=batch_size, exc_info=error)
