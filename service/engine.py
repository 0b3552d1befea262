"""The way of one picture: decode -> micro-batcher -> runtime -> answer.

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

from service import __version__, hardware, images
from service.batching import MicroBatcher, warm_up
from service.errors import (
    DeadlineExceeded,
    DeviceFailed,
    ServiceError,
)
from service.images import Crop
from service.metrics import Metrics
from service.models import Model, check_probabilities
from service.runtimes import Runtime, TopK
from service.threads import Threads

Value = TypeVar("Value")

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)


class _Job(NamedTuple):
    crop: Crop
    top_k: int


class _Result(NamedTuple):
    best: TopK
    device: str


@dataclass(frozen=True)
class Classification:
    """A picture's best classes, [k], where it ran, and the seconds of each stage it went through.

    `Model.rank` puts labels to the classes.
    """

    best: TopK
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
        max_pixels: int = images.DEFAULT_MAX_PIXELS,
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
        self._decoders = Threads(decode_threads or hardware.cores(), "decode")
        self._devices = {runtime: Threads(1, "device") for runtime in self.runtimes}
        self._device_failure: DeviceFailed | None = None
        self._batcher: MicroBatcher[_Job, _Result] = MicroBatcher(
            [partial(self._run_batch, runtime) for runtime in self.runtimes],
            max_batch=max_batch,
            max_queue=max_queue,
            max_wait_s=max_wait_s,
            on_failure=_log_failure,
        )
        size = model.preprocessing.crop
        self._noise: Crop = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)

    @property
    def max_batch(self) -> int:
        """The largest batch given to the device."""
        return self._batcher.max_batch

    @property
    def devices(self) -> str:
        """The devices that pictures run on, with commas between."""
        return ",".join(dict.fromkeys(runtime.device for runtime in self.runtimes))

    @property
    def ready(self) -> bool:
        """Whether pictures are accepted: warmed up, not closing, not failed."""
        return self._warm and not self._closing and self.failure is None

    @property
    def failure(self) -> BaseException | None:
        """What has stopped the engine for good: a failed warm-up or a failed device; else None."""
        if self._starting is not None and self._starting.done() and not self._starting.cancelled():
            return self._starting.exception() or self._device_failure or self._batcher.failure
        return self._device_failure or self._batcher.failure

    @property
    def stalled(self) -> bool:
        """Whether a batch or a picture's decoding has been running for longer than the stall timeout."""
        return self._running_for_s > self._stall_timeout_s

    @property
    def stuck(self) -> bool:
        """Whether it has been, after the warm-up, for twice as long: nobody has ended the process yet."""
        return self.ready and self._running_for_s > 2 * self._stall_timeout_s

    @property
    def busy(self) -> bool:
        """Whether a thread is at work; after `close`, one that has not ended in time."""
        return self._running_for_s > 0

    @property
    def _running_for_s(self) -> float:
        return max(thread.running_for_s for thread in self._threads)

    @property
    def _threads(self) -> tuple[Threads, ...]:
        return (self._decoders, *self._devices.values())

    @property
    def _warm(self) -> bool:
        return self._starting is not None and self._starting.done()

    def publish(self) -> None:
        """Let the metrics tell of this engine, and of no other."""
        metrics = self._metrics
        metrics.queue_depth.set_function(lambda: self._batcher.depth)
        metrics.queue_limit.set(self._batcher.max_queue)
        metrics.largest_batch.set_function(lambda: self._batcher.largest_batch)
        metrics.decode_threads.set(self._decoders.count)
        metrics.decode_running.set_function(lambda: self._decoders.running)
        metrics.decode_waiting.set_function(lambda: self._decoders.waiting)
        metrics.ready.set_function(lambda: self.ready)
        metrics.instances.set(len(self.runtimes))
        for labelled in (metrics.device_memory, metrics.device_memory_limit, metrics.model_info):
            labelled.clear()
        for runtime in self.runtimes:  # those of one device are the same here
            held = metrics.device_memory.labels(runtime.device)
            held.set_function(partial(_memory, runtime, "held"))
            limit = metrics.device_memory_limit.labels(runtime.device)
            limit.set_function(partial(_memory, runtime, "limit"))
            info = (self.model.name, runtime.device, runtime.precision, runtime.name, __version__)
            metrics.model_info.labels(*info).set(1)

    def start(self) -> None:
        """Begin to warm up in the background; `ready` says when pictures are accepted."""
        self._starting = asyncio.create_task(self._start())

    async def warm(self) -> None:
        """Wait until the warm-up that `start` began is over; raises what it failed with."""
        if self._starting is not None:
            await asyncio.shield(self._starting)

    async def classify(
        self, data: bytes | bytearray, top_k: int, deadline: float | None = None
    ) -> Classification:
        """Classify one encoded picture; `deadline` is on the event loop's clock.

        `top_k` is from 1 to the number of classes. Raises what `service.images.decode` and
        `MicroBatcher.submit` raise.
        """
        decode = partial(images.decode, data, self.model.preprocessing, self._max_pixels)
        return await self.classify_crop(decode, top_k, deadline)

    async def classify_crop(
        self, crop: Crop | Callable[[], Crop], top_k: int, deadline: float | None = None
    ) -> Classification:
        """Classify a crop, [S, S, 3] uint8, or what `crop` makes in a decoding thread, as `classify` does."""
        observe = self._metrics.stage_seconds.labels
        with self._metrics.outcome():
            # Before decoding: what will be refused costs nothing, and what is decoded is not refused.
            with self._batcher.reserve(deadline) as place, self._metrics.in_flight.track_inprogress():
                started = time.perf_counter()
                made = await self.in_decoder(deadline, crop) if callable(crop) else crop
                decode_s = time.perf_counter() - started
                answer = await place.submit(_Job(made, top_k))
            if callable(crop):
                observe("decode").observe(decode_s)
            observe("queue").observe(answer.queue_s)
            observe("device").observe(answer.run_s)
            of_batch = answer.result.best
            best = TopK(of_batch.class_ids[:top_k], of_batch.probabilities[:top_k])
            check_probabilities(best.probabilities)
            return Classification(best, answer.result.device, decode_s, answer.queue_s, answer.run_s)

    def admit(self, deadline: float | None) -> None:
        """Raise what `classify` would raise at once, for whoever has work to do before it has the picture."""
        try:
            with self._batcher.reserve(deadline):
                pass
        except ServiceError:
            with self._metrics.outcome():
                raise

    async def in_decoder(
        self, deadline: float | None, function: Callable[..., Value], *arguments: object
    ) -> Value:
        """Call `function` in a decoding thread; raises DeadlineExceeded where it has not ended in time."""
        try:
            async with asyncio.timeout_at(deadline):
                return await self._decoders.run(function, *arguments)
        except TimeoutError as error:
            raise DeadlineExceeded("the deadline came before the device did") from error

    async def run_synthetic(self, batch_size: int) -> None:
        """Run one batch of noise on the first device, between the batches of requests."""
        await self._run_noise(self.runtimes[0], batch_size)

    def begin_drain(self) -> None:
        """Stop being ready; requests on open connections are still answered."""
        self._closing = True

    async def close(self, timeout_s: float) -> None:
        """Refuse new pictures, answer those accepted, and return within twice `timeout_s` seconds."""
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
        _log.info("ready", largest_batch=warmed.worthwhile, seconds=seconds)

    async def _run_batch(self, runtime: Runtime, jobs: list[_Job]) -> list[_Result]:
        self._metrics.batch_size.observe(len(jobs))
        crops, k = [job.crop for job in jobs], max(job.top_k for job in jobs)
        with self._metrics.batch_seconds.time():
            best = await self._devices[runtime].run(runtime.run, crops, k)
        return [
            _Result(TopK(ids, probabilities), runtime.device)
            for ids, probabilities in zip(best.class_ids, best.probabilities, strict=True)
        ]

    async def _warm_up(self, batch_size: int) -> float:
        """Run a batch of noise on each device at once and return the seconds of the slowest."""
        started = time.perf_counter()
        await asyncio.gather(*(self._run_noise(runtime, batch_size) for runtime in self.runtimes))
        return time.perf_counter() - started

    async def _run_noise(self, runtime: Runtime, batch_size: int) -> None:
        try:
            best = await self._devices[runtime].run(runtime.run, [self._noise] * batch_size, 1)
            check_probabilities(best.probabilities[0])
        except DeviceFailed as error:
            # No batch of a request, whose end the batcher would see: it is the engine's own.
            self._device_failure = error
            raise


def _memory(runtime: Runtime, part: Literal["held", "limit"]) -> int:
    memory = runtime.memory()
    return 0 if memory is None else getattr(memory, part)


def _log_failure(error: BaseException, batch_size: int) -> None:
    _log.error("batch failed", batch_size=batch_size, exc_info=error)
