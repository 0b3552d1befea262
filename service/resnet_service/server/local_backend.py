"""The backend in the process that has the devices."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Final

import structlog
import torch
import torchvision

from resnet_service import __version__
from resnet_service.batching import Lane
from resnet_service.benchmark.timing import time_batches
from resnet_service.errors import Conflict, ModelLoadError, ServiceUnavailable
from resnet_service.explanations import Explanation
from resnet_service.images import FORMATS, Crop
from resnet_service.inference.engine import Engine
from resnet_service.inference.image_decoder import ImageDecoder
from resnet_service.inference.statistics import ModelStatistics, RequestCounters, StatisticsTable
from resnet_service.machine import hardware_info
from resnet_service.metrics import Metrics
from resnet_service.models import ModelVersion
from resnet_service.schemas import BenchResponse, InfoResponse, ModelStatus, RequestLimits
from resnet_service.server.auth import APIKey, APIKeys, RateLimiter
from resnet_service.server.backend import Admission
from resnet_service.server.engine_manager import EngineManager
from resnet_service.server.explainers import Explainers
from resnet_service.server.heartbeat import Heartbeat
from resnet_service.server.model_table import ModelTable
from resnet_service.settings import Settings

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)


class LocalBackend:
    """Implements `Backend` with the engines of this process; see there for the methods.

    `check_alive`, `check_ready`, `info`, `render_metrics` and `reload` may be called on any event loop.

    engines: the engines of all versions that serve, and their replacement.
    heartbeat: when the event loop of the engines last ran.
    workers: the number of HTTP workers; without any, this process handles HTTP as well.
    ready_workers: how many of them accept requests.
    metrics_registry: what `render_metrics` returns.
    counters: what `statistics` returns.
    decoder: decodes the images of all models, unless HTTP workers do.
    on_change: called on that event loop when the engines have changed.
    wait_for_workers: called then, to wait until all HTTP workers use them.
    """

    def __init__(
        self,
        settings: Settings,
        engines: EngineManager,
        metrics: Metrics,
        counters: StatisticsTable,
        decoder: ImageDecoder,
        explainers: Explainers,
        api_keys: APIKeys,
        workers: int,
    ) -> None:
        self.engines = engines
        self.admit: Callable[[ModelVersion, float, Lane], Admission] = engines.admit
        self.workers = workers
        self.ready_workers = 0
        self.metrics_registry = metrics.registry
        self.counters = counters
        self.decoder = decoder
        self._explainers = explainers
        self.api_keys = api_keys
        self.heartbeat = Heartbeat()
        self.on_change: Callable[[], None] = lambda: None
        self.wait_for_workers: Callable[[], Awaitable[None]] = _do_nothing
        engines.on_change = self._engines_changed
        self._settings = settings
        self._metrics = metrics
        self._rates = RateLimiter()
        self._devices: set[str] = set()
        self._bench_lock = asyncio.Lock()  # two benchmarks would measure each other
        metrics.ready.set_function(lambda: self._is_ready)
        self._engines_changed(())

    def _engines_changed(self, removed: Iterable[Engine]) -> None:
        metrics, engines = self._metrics, self.engines.engines
        metrics.model_info.clear()
        for engine in removed:
            self._explainers.remove(engine)
            if engine.key not in engines:
                metrics.remove_model(*engine.key)
        for engine in engines.values():
            engine.bind_metrics()
            metrics.model_loaded.labels(*engine.key).set(engine.served_model.loaded_at)
            self.counters.of(engine.key).has_served = True
        devices = {runtime.device for engine in engines.values() for runtime in engine.runtimes}
        for device in self._devices - devices:
            metrics.remove_device(device)
        self._devices = devices
        self.on_change()

    @property
    def models(self) -> ModelTable:
        """See `Backend`."""
        return self.engines.models

    def request_counters(self, key: ModelVersion) -> RequestCounters:
        """See `Backend`."""
        return self.counters.of(key).requests[0]

    @property
    def fatal_error(self) -> BaseException | None:
        """See `Backend`: one failed device, or one model that cannot be warmed up, is a reason."""
        errors = (engine.fatal_error for engine in self.engines.engines.values())
        return next((error for error in errors if error is not None), None)

    @property
    def is_hung(self) -> bool:
        """See `Backend`."""
        if any(engine.is_hung for engine in self.engines.engines.values()):
            return True
        # Without the sandbox, which has its own time limit.
        return self.decoder.threads.oldest_call_age_s > 2 * self._settings.stall_timeout_s and self._is_ready

    async def check_alive(self) -> None:
        """See `Backend`: a device has failed, or a batch, a decode or the event loop hangs."""
        if self.fatal_error is not None:
            raise ServiceUnavailable("the model or the device has failed; restart the process")
        is_stalled = any(engine.is_stalled for engine in self.engines.engines.values())
        if is_stalled or self.decoder.threads.oldest_call_age_s > self._settings.stall_timeout_s:
            raise ServiceUnavailable("a batch or the decoding of a JPEG exceeds the stall timeout")
        if self.heartbeat.age_s > self._settings.stall_timeout_s:  # seen from the management port only
            raise ServiceUnavailable("the event loop has not run for the stall timeout")

    async def check_ready(self) -> None:
        """See `Backend`."""
        if not self._is_ready:
            raise ServiceUnavailable("the service is warming up, draining or has failed")

    @property
    def _is_ready(self) -> bool:
        are_ready = all(engine.is_ready for engine in self.engines.engines.values())
        return are_ready and (self.ready_workers > 0 or not self.workers)

    async def count_request(self, key: APIKey) -> None:
        """See `Backend`."""
        self._rates.count(key)

    async def info(self) -> InfoResponse:
        """See `Backend`."""
        engine, settings = self.engines.current, self._settings
        model, placement = engine.model, engine.served_model.placement
        return InfoResponse(
            model=model.name,
            model_version=model.version,
            models=list(await self.model_statuses()),
            source=model.source,
            labels=len(model.labels),
            input_size=model.preprocessing.crop,
            embedding_size=model.embedding_size,
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
        statuses = [_status(engine) for engine in self.engines.engines.values()]
        loaded = set(self.models.names)
        for name in await asyncio.to_thread(self._configured_names):
            if name in self.engines.loading - loaded:
                reason = "the model is being loaded"
                statuses.append(ModelStatus(name=name, version="", state="LOADING", reason=reason))
            elif name not in loaded:
                reason = "the model is not loaded"
                statuses.append(ModelStatus(name=name, version="", state="UNAVAILABLE", reason=reason))
        return statuses

    def _configured_names(self) -> list[str]:
        try:
            return self.engines.configured.all_names()
        except ModelLoadError as error:
            _log.error("model_repository_unreadable", reason=str(error))
            return []

    async def statistics(self) -> Sequence[ModelStatistics]:
        """See `Backend`: also of versions that were unloaded."""
        return self.counters.read()

    async def benchmark(self, key: ModelVersion, batch_sizes: list[int], iterations: int) -> BenchResponse:
        """See `Backend`: on the first device, between the batches of requests."""
        with self.engines.acquire(self.engines.find(key)) as engine:
            if not engine.is_ready:
                raise ServiceUnavailable("the service is warming up, draining or has failed")
            if self._bench_lock.locked():
                raise Conflict("a benchmark is already running")
            async with self._bench_lock:
                rows = await time_batches(engine.run_benchmark_batch, batch_sizes, iterations)
            runtime = engine.runtimes[0]
        return BenchResponse(
            model=engine.model.name,
            version=engine.model.version,
            device=runtime.device,
            precision=runtime.precision,
            runtime=runtime.name,
            hardware=hardware_info(),
            rows=rows,
        )

    async def explain(
        self, key: ModelVersion, crop: Crop, class_id: int | None, deadline: float | None
    ) -> Explanation:
        """See `Backend`."""
        return await self._explainers.explain(self.engines.find(key), crop, class_id, deadline)

    async def render_metrics(self, accept: str) -> tuple[bytes, str]:
        """See `Backend`."""
        if self.workers:  # reads the files of all workers, which can take a tenth of a second
            return await asyncio.to_thread(self._metrics.render, accept, self.metrics_registry)
        return self._metrics.render(accept, self.metrics_registry)

    async def reload(self) -> None:
        """See `Backend`. A reload that is requested while HTTP workers start waits for them."""
        await self._on_loop(self._reload)

    async def _reload(self) -> None:
        def use(api_keys: APIKeys) -> None:
            self.api_keys = api_keys

        await self.engines.reload(partial(APIKeys.from_settings, self._settings), use)

    async def load(self, name: str) -> None:
        """See `Backend`."""
        await self._on_loop(partial(self.engines.load, name))

    async def unload(self, name: str) -> None:
        """See `Backend`."""
        await self._on_loop(partial(self.engines.unload, name))

    async def _on_loop(self, change: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Change the engines on their event loop, once they are started.

        A client that leaves, or an HTTP worker that ends, does not cancel the change: another one could start
        while a thread still loads an engine, which could not be closed.
        """

        async def change_all() -> None:
            await change()
            await self.wait_for_workers()

        loop = await asyncio.shield(asyncio.wrap_future(self.engines.loop))
        await asyncio.shield(asyncio.wrap_future(asyncio.run_coroutine_threadsafe(change_all(), loop)))

    def start(self) -> None:
        """See `Backend`."""
        self.engines.start()
        if not self.workers:
            self.decoder.start()

    async def wait_until_warm(self) -> None:
        """See `Backend`."""
        await self.engines.wait_until_warm()

    def begin_drain(self) -> None:
        """See `Backend`."""
        self.engines.begin_drain()

    async def close(self, timeout_s: float) -> None:
        """See `Backend`."""
        await self.engines.close(timeout_s)
        await asyncio.gather(self.decoder.close(timeout_s), self._explainers.close(timeout_s))


async def _do_nothing() -> None:
    pass


def _status(engine: Engine) -> ModelStatus:
    status = partial(ModelStatus, name=engine.key.name, version=engine.key.version)
    if engine.fatal_error is not None:
        reason = "the model or the device has failed; restart the process"
        return status(state="UNAVAILABLE", reason=reason)
    if engine.is_draining:
        return status(state="UNAVAILABLE", reason="the service is shutting down")
    if engine.is_ready:
        return status(state="READY", reason="")
    return status(state="LOADING", reason="the model is warming up")
