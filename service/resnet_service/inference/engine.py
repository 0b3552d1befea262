"""Run the decoded images of requests on the devices: reservation -> micro-batcher -> runtime -> result.

The engine has one thread per runtime, which makes all calls of that runtime. This module does not depend on
HTTP.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final, Protocol

import numpy as np
import structlog

from resnet_service.batching import Lane, MicroBatcher, QueueItem, Reservation, warm_up
from resnet_service.errors import DeviceError
from resnet_service.images import Crop
from resnet_service.inference.engine_metrics import bind_engine
from resnet_service.inference.image_decoder import ImageDecoder
from resnet_service.inference.prediction_metrics import PredictionSettings
from resnet_service.inference.served_model import Placement, QueuedCrop, ServedModel
from resnet_service.inference.statistics import BatchCounters
from resnet_service.inference.worker_pool import WorkerPool
from resnet_service.metrics import Metrics
from resnet_service.models import Model, ModelDescription, ModelVersion
from resnet_service.models.model import FIRST_VERSION
from resnet_service.runtimes import Runtime, TopKResult
from resnet_service.runtimes.sizing import DEFAULT_MAX_BATCH, BatchLimit

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

_MIN_CONCURRENCY: Final = 256  # most of these may be receiving their bodies

EngineReservation = Reservation[QueuedCrop, TopKResult]
"""The admission of one request; see `Engine.reserve`."""


class BatchObserver(Protocol):
    """Sees the batches of an engine."""

    def sample(self, crops: Sequence[Crop]) -> dict[int, Crop]:
        """Return copies of some crops of a batch that is about to run, by their places in it."""
        ...

    def observe(self, samples: dict[int, Crop], results: Sequence[TopKResult]) -> None:
        """Take these samples and the results of their batch."""
        ...


class Engine:
    """Runs one version of a model on its runtimes, from `start` to `close`, on one event loop.

    Every accepted image ends with a result or an error, and images of concurrent requests share batches.
        engine = Engine(model, runtimes, decoder, Metrics())
        engine.start()
        await engine.wait_until_warm()
        with engine.reserve() as reservation:
            await reservation.start()
            result = await engine.served_model.classify(jpeg, 5, reservation, RequestTiming())
        await engine.close(timeout_s=10)

    observer: sees all batches of requests, if there is one.
    """

    def __init__(
        self,
        model: Model,
        runtimes: Sequence[Runtime],
        decoder: ImageDecoder,
        metrics: Metrics,
        *,
        version: str = FIRST_VERSION,
        max_batch: int = DEFAULT_MAX_BATCH,
        batch_limit: BatchLimit | None = None,
        max_concurrency: int | None = None,
        max_queue: float = math.inf,
        max_queue_wait_s: float = math.inf,
        max_wait_s: float = 0.0,
        workers: int = 0,
        stall_timeout_s: float = 60.0,
        counters: BatchCounters | None = None,
        predictions: PredictionSettings = PredictionSettings(),  # noqa: B008 - immutable
    ) -> None:
        self.runtimes = tuple(runtimes)
        self.observer: BatchObserver | None = None
        self._metrics = metrics
        self._counters = counters or BatchCounters()
        self._batch_limit = batch_limit or BatchLimit(max_batch, "max_batch is set")
        self._stall_timeout_s = stall_timeout_s
        self._max_queue, self._max_queue_wait_s = max_queue, max_queue_wait_s
        self._closing = False
        self._warmup_task: asyncio.Task[None] | None = None
        first, devices = runtimes[0], ",".join(dict.fromkeys(runtime.device for runtime in runtimes))
        placement = Placement(devices, first.precision, first.name, len(runtimes))
        self._device_threads = [WorkerPool(1, "device") for _ in self.runtimes]
        self._device_failure: DeviceError | None = None
        self.max_concurrency = max_concurrency or max(_MIN_CONCURRENCY, 3 * max_batch * len(self.runtimes))
        self.unreserved_per_worker = self.max_concurrency // 4 // workers if workers else 0
        self._batcher: MicroBatcher[QueuedCrop, TopKResult] = MicroBatcher(
            [partial(self._run_batch, index) for index in range(len(self.runtimes))],
            max_batch=max_batch,
            largest_batch=self._batch_limit.size,
            max_queue=max_queue,
            max_queue_wait_s=max_queue_wait_s,
            max_concurrency=self.max_concurrency - workers * self.unreserved_per_worker,
            max_wait_s=max_wait_s,
            on_failure=lambda error, size: _log.error("batch_failed", batch_size=size, exc_info=error),
        )
        batcher = self._batcher  # not this engine, which refers to the served model
        description = replace(model.description, version=version, embedding_size=first.embedding_size)
        self._batch_size = metrics.batch_size.labels(*description.key)
        self._batch_seconds = metrics.batch_seconds.labels(*description.key)
        self.served_model = ServedModel(
            description, placement, max_batch, decoder, metrics, lambda: batcher.largest_batch, predictions
        )
        size = model.preprocessing.crop
        self._dummy_input: Crop = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)

    @property
    def key(self) -> ModelVersion:
        """The name and version of the model."""
        return self.served_model.key

    @property
    def model(self) -> ModelDescription:
        """The description of the model."""
        return self.served_model.model

    @property
    def max_batch(self) -> int:
        """The largest batch that fits the device."""
        return self._batcher.max_batch

    @property
    def largest_batch(self) -> int:
        """The largest batch that is formed: one that fits the device and is faster per image."""
        return self._batcher.largest_batch

    @property
    def is_ready(self) -> bool:
        """Whether images are accepted: the engine is warm, not draining, and has not failed."""
        return self.is_warm and not self._closing and self.fatal_error is None

    @property
    def is_draining(self) -> bool:
        """Whether the engine is about to be closed, or is closed."""
        return self._closing

    @property
    def fatal_error(self) -> BaseException | None:
        """The error that stopped the engine for good, of the warm-up or of a device; otherwise None."""
        if self._warmup_task is not None and self._warmup_task.done() and not self._warmup_task.cancelled():
            return self._warmup_task.exception() or self._device_failure or self._batcher.failure
        return self._device_failure or self._batcher.failure

    @property
    def is_stalled(self) -> bool:
        """Whether a batch has been running for longer than the stall timeout."""
        return self._oldest_call_age_s > self._stall_timeout_s

    @property
    def is_hung(self) -> bool:
        """Whether, after the warm-up, a batch has been running for twice the stall timeout.

        Liveness probes fail after once the timeout; the process ends itself if it still runs after twice.
        """
        return self.is_ready and self._oldest_call_age_s > 2 * self._stall_timeout_s

    @property
    def _oldest_call_age_s(self) -> float:
        return max((pool.oldest_call_age_s for pool in self._device_threads), default=0.0)

    @property
    def is_warm(self) -> bool:
        """Whether the warm-up has ended, and not because the engine was closed."""
        task = self._warmup_task
        return task is not None and task.done() and not task.cancelled()

    def bind_metrics(self) -> None:
        """Make the gauges of this version and its devices report this engine, and not one bound before."""
        bind_engine(self._metrics, self.key, self._batcher, self.runtimes, self._max_queue_wait_s)
        self.served_model.predictions.bind_metrics()

    def start(self) -> None:
        """Start the warm-up in the background; `is_ready` becomes true after it."""
        self._warmup_task = asyncio.create_task(self._warm_up())

    async def wait_until_warm(self) -> None:
        """Wait for the end of the warm-up. Raises its error if it failed."""
        if self._warmup_task is not None:
            await asyncio.shield(self._warmup_task)

    def admission_wait(self, lane: Lane) -> float:
        """Return the seconds that a request must allow, or `reserve` rejects it; infinity if always."""
        return self._batcher.admission_wait(lane)

    @property
    def has_waiting_images(self) -> bool:
        """Whether images wait for a device."""
        return any(self._batcher.depth(lane) for lane in Lane)

    def open_wait_s(self) -> float:
        """Return the estimated wait of a request if it needs no reservation, else infinity.

        It needs none while less than half of the permits are taken and the wait is below half of its limit.
        Each HTTP worker may then have `unreserved_per_worker` requests in progress without asking.
        """
        if not self.is_ready or self._max_queue < math.inf or not self._batcher.has_spare_permits:
            return math.inf
        wait_s = self._batcher.estimate_wait()
        return wait_s if 2 * wait_s < self._max_queue_wait_s else math.inf

    def enqueue(
        self, queued: QueuedCrop, deadline: float | None, lane: Lane
    ) -> QueueItem[QueuedCrop, TopKResult]:
        """Queue an image that needs no reservation. Raises ServiceUnavailable if the engine is closed."""
        return self._batcher.enqueue(queued, deadline, lane)

    def cancel(self, entry: QueueItem[QueuedCrop, TopKResult]) -> None:
        """Drop an image that waits; one that runs has no effect any more."""
        self._batcher.cancel(entry)

    def reserve(self, timeout_s: float | None = None, lane: Lane = Lane.INTERACTIVE) -> EngineReservation:
        """Admit one request before its images exist; it may take `timeout_s` seconds.

        Use the result in a `with` block, which releases it. Raises what `MicroBatcher.reserve` raises.
        """
        deadline = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        return self._batcher.reserve(deadline, lane)

    async def run_benchmark_batch(self, batch_size: int) -> None:
        """Run one batch of `batch_size` dummy images on the first device, between the batches of requests."""
        await self._run_dummy_batch(0, batch_size)

    def begin_drain(self) -> None:
        """Make `is_ready` false; images are still accepted until `close`."""
        self._closing = True

    async def close(self, timeout_s: float) -> None:
        """Reject new images, finish the accepted ones, and return within 2 * `timeout_s` seconds."""
        self._closing = True
        if self._warmup_task is not None and not self._warmup_task.done():
            self._warmup_task.cancel()
        await self._batcher.close(timeout_s)
        await asyncio.gather(*(pool.close(timeout_s) for pool in self._device_threads))
        self.observer = None
        self.runtimes = ()  # their memory must not wait for the garbage collector

    async def _warm_up(self) -> None:
        started = time.perf_counter()
        self._batcher.start(await warm_up(self._time_batch, self._batch_limit.size))
        seconds, limit = round(time.perf_counter() - started, 2), self._batch_limit
        _log.info(
            "ready",
            **self.key._asdict(),
            largest_batch=limit.size,
            streams=len(self.runtimes),
            reason=limit.reason,
            seconds=seconds,
        )

    async def _run_batch(self, index: int, batch: list[QueuedCrop]) -> list[TopKResult]:
        self._batch_size.observe(len(batch))
        crops, k = [queued.crop for queued in batch], max(queued.top_k for queued in batch)
        device, with_embedding = self.runtimes[index], [queued.with_embedding for queued in batch]
        run = partial(device.run, with_embeddings=True) if any(with_embedding) else device.run
        observer = self.observer
        samples = {} if observer is None else observer.sample(crops)
        started = time.perf_counter()
        try:
            best = await self._device_threads[index].run(run, crops, k)
        finally:
            seconds = time.perf_counter() - started
            self._batch_seconds.observe(seconds)
        self._counters.add(len(batch), seconds)
        results = best.images(with_embedding)
        if observer is not None:
            observer.observe(samples, results)
        return results

    async def _time_batch(self, batch_size: int) -> float:
        """Run a dummy batch on all runtimes at the same time and return the seconds of the slowest."""
        started = time.perf_counter()
        await asyncio.gather(*(self._run_dummy_batch(i, batch_size) for i in range(len(self.runtimes))))
        return time.perf_counter() - started

    async def _run_dummy_batch(self, index: int, batch_size: int) -> None:
        crops = [self._dummy_input] * batch_size
        try:
            best = await self._device_threads[index].run(self.runtimes[index].run, crops, 1)
            best.images()[0].top(1)  # raises if the network computes values that are not finite
        except DeviceError as error:
            # The batcher does not see this batch, so the engine records the failure.
            self._device_failure = error
            raise
