"""The backend in the process that has the devices."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torchvision

from resnet_service import __version__
from resnet_service.batching import Lane
from resnet_service.benchmark.timing import time_batches
from resnet_service.errors import Conflict, ServiceUnavailable
from resnet_service.images import FORMATS
from resnet_service.inference.served_model import ServedModel
from resnet_service.inference.statistics import ModelCounters, ModelStatistics
from resnet_service.machine import hardware_info
from resnet_service.metrics import Metrics
from resnet_service.schemas import BenchResponse, InfoResponse, RequestLimits
from resnet_service.server.auth import APIKey, APIKeys, RateLimiter
from resnet_service.server.backend import Admission, ModelStatus
from resnet_service.server.engine_manager import EngineManager
from resnet_service.server.heartbeat import Heartbeat
from resnet_service.server.v2.schemas import MODEL_VERSION
from resnet_service.settings import Settings


class LocalBackend:
    """Implements `Backend` with the engines of this process; see there for the methods.

    `check_alive`, `check_ready`, `info`, `render_metrics` and `reload` may be called on any event loop.

    engines: the engine that serves requests, and its replacement by `reload`.
    heartbeat: when the event loop of the engines last ran.
    workers: the number of HTTP workers; without any, this process handles HTTP as well.
    ready_workers: how many of them accept requests.
    metrics_registry: what `render_metrics` returns.
    counters: what `statistics` returns.
    on_reload: called on that event loop after each reload.
    """

    def __init__(
        self,
        settings: Settings,
        engines: EngineManager,
        metrics: Metrics,
        counters: ModelCounters,
        api_keys: APIKeys,
        workers: int,
    ) -> None:
        self.engines = engines
        self.admit: Callable[[float, Lane], Admission] = engines.admit
        self.workers = workers
        self.ready_workers = 0
        self.metrics_registry = metrics.registry
        self.counters = counters
        [self.request_counters] = counters.requests
        self.api_keys = api_keys
        self.heartbeat = Heartbeat()
        self.on_reload: Callable[[], None] = lambda: None
        self._settings = settings
        self._metrics = metrics
        self._rates = RateLimiter()
        self._bench_lock = asyncio.Lock()  # two benchmarks would measure each other
        metrics.ready.set_function(lambda: self._is_ready)

    @property
    def served_model(self) -> ServedModel:
        """See `Backend`."""
        return self.engines.current.served_model

    @property
    def fatal_error(self) -> BaseException | None:
        """See `Backend`."""
        return self.engines.current.fatal_error

    @property
    def is_hung(self) -> bool:
        """See `Backend`."""
        return self.engines.current.is_hung

    async def check_alive(self) -> None:
        """See `Backend`: the device has failed, or a batch, a decode or the event loop hangs."""
        engine = self.engines.current
        if engine.fatal_error is not None:
            raise ServiceUnavailable("the model or the device has failed; restart the process")
        if engine.is_stalled:
            raise ServiceUnavailable("a batch or the decoding of a JPEG exceeds the stall timeout")
        if self.heartbeat.age_s > self._settings.stall_timeout_s:  # seen from the management port only
            raise ServiceUnavailable("the event loop has not run for the stall timeout")

    async def check_ready(self) -> None:
        """See `Backend`."""
        if not self._is_ready:
            raise ServiceUnavailable("the service is warming up, draining or has failed")

    @property
    def _is_ready(self) -> bool:
        return self.engines.current.is_ready and (self.ready_workers > 0 or not self.workers)

    async def count_request(self, key: APIKey) -> None:
        """See `Backend`."""
        self._rates.count(key)

    async def info(self) -> InfoResponse:
        """See `Backend`."""
        engine, settings = self.engines.current, self._settings
        model, placement = engine.model, engine.served_model.placement
        return InfoResponse(
            model=model.name,
            source=model.source,
            labels=len(model.labels),
            input_size=model.preprocessing.crop,
            device=placement.devices,
            precision=placement.precision,
            runtime=placement.runtime,
            streams=placement.streams,
            version=__version__,
            versions={"torch": torch.__version__, "torchvision": torchvision.__version__},
            hardware=hardware_info(),
            limits=RequestLimits(
                max_upload_bytes=settings.max_body_bytes,
                max_pixels=int(settings.max_megapixels * 1e6),
                max_images_per_request=settings.max_images_per_request,
                max_batch=engine.max_batch,
                max_queue=settings.max_queue,
                max_queue_wait_s=settings.max_queue_wait_s,
                request_timeout_s=settings.request_timeout_s,
                formats=list(FORMATS),
            ),
        )

    async def model_statuses(self) -> Sequence[ModelStatus]:
        """See `Backend`. While a model is reloaded, the previous one serves."""
        engine = self.engines.current
        version = partial(ModelStatus, engine.model.name, MODEL_VERSION)
        if engine.fatal_error is not None:
            return [version("UNAVAILABLE", "the model or the device has failed; restart the process")]
        if engine.is_draining:
            return [version("UNAVAILABLE", "the service is shutting down")]
        return [version("READY", "") if engine.is_ready else version("LOADING", "the model is warming up")]

    async def statistics(self) -> Sequence[ModelStatistics]:
        """See `Backend`."""
        return [self.counters.read(self.engines.current.model.name, MODEL_VERSION)]

    async def benchmark(self, batch_sizes: list[int], iterations: int) -> BenchResponse:
        """See `Backend`: on the first device, between the batches of requests."""
        with self.engines.acquire() as engine:
            if not engine.is_ready:
                raise ServiceUnavailable("the service is warming up, draining or has failed")
            if self._bench_lock.locked():
                raise Conflict("a benchmark is already running")
            async with self._bench_lock:
                rows = await time_batches(engine.run_benchmark_batch, batch_sizes, iterations)
        runtime = engine.runtimes[0]
        return BenchResponse(
            model=engine.model.name,
            device=runtime.device,
            precision=runtime.precision,
            runtime=runtime.name,
            hardware=hardware_info(),
            rows=rows,
        )

    async def render_metrics(self, accept: str) -> tuple[bytes, str]:
        """See `Backend`."""
        if self.workers:  # reads the files of all workers, which can take a tenth of a second
            return await asyncio.to_thread(self._metrics.render, accept, self.metrics_registry)
        return self._metrics.render(accept, self.metrics_registry)

    async def reload(self) -> None:
        """See `Backend`. A reload that is requested while HTTP workers start waits for them."""
        loop = await asyncio.shield(asyncio.wrap_future(self.engines.loop))
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._reload(), loop))

    async def _reload(self) -> None:
        self.api_keys = await self.engines.reload(partial(APIKeys.from_settings, self._settings))
        self._bind_decoder_metrics()
        self.on_reload()

    def start(self) -> None:
        """See `Backend`."""
        self.engines.start()
        self._bind_decoder_metrics()

    def _bind_decoder_metrics(self) -> None:
        if not self.workers:
            self.served_model.decoder.bind_metrics()

    async def wait_until_warm(self) -> None:
        """See `Backend`."""
        await self.engines.wait_until_warm()

    def begin_drain(self) -> None:
        """See `Backend`."""
        self.engines.begin_drain()

    async def close(self, timeout_s: float) -> None:
        """See `Backend`."""
        await self.engines.close(timeout_s)
