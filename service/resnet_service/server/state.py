"""What one process serves, and how routes get at it."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Final, cast

import structlog
from fastapi import Depends, Request

from resnet_service.devices import choose_devices
from resnet_service.errors import Conflict, InvalidRequestError, ReloadError, ServiceError, ServiceUnavailable
from resnet_service.inference.engine import Engine
from resnet_service.inference.worker_pool import WorkerPool
from resnet_service.metrics import Metrics
from resnet_service.models import load_model
from resnet_service.runtimes import Runtime
from resnet_service.runtimes.selection import create_runtimes
from resnet_service.server.auth import APIKeys
from resnet_service.server.uploads import UploadMemory
from resnet_service.settings import Settings
from resnet_service.tracing import RequestTracer

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)


@dataclass(eq=False)
class AppState:
    """A loaded model with its settings, metrics and keys, for the life of the process.

    The engine can be replaced while requests are answered, each of which keeps to the one it has begun with.
    """

    settings: Settings
    engine: Engine
    metrics: Metrics
    load_engine: Callable[[], Engine]
    keys: APIKeys
    uploads: UploadMemory
    tracer: RequestTracer | None = None
    bench_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _draining: bool = False
    _reload_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _refcounts: Counter[Engine] = field(default_factory=Counter)
    _draining_engines: dict[Engine, asyncio.Task[None]] = field(default_factory=dict)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def acquire_engine(self) -> Iterator[Engine]:
        """Give a request the engine, which stays open for it even if another takes its place."""
        engine = self.engine
        self._refcounts[engine] += 1
        try:
            yield engine
        finally:
            self._refcounts[engine] -= 1
            if not self._refcounts[engine]:
                del self._refcounts[engine]
                self._idle.set()

    async def reload(self) -> None:
        """Read the keys and load the model anew, from where the settings say; replace the old when warm.

        Raises ReloadError with the reason, and the old ones go on, and Conflict during another reload.
        """
        if self.reloading:
            raise Conflict("the model is being reloaded")
        async with self._reload_lock:
            keys, engine = await self._load_engine_and_keys()
            old, self.engine, self.keys = self.engine, engine, keys
            engine.bind_metrics()
            self._draining_engines[old] = asyncio.create_task(self._drain_engine(old))

    @property
    def reloading(self) -> bool:
        """Whether a model is being loaded anew."""
        return self._reload_lock.locked()

    def begin_drain(self) -> None:
        """Stop being ready, for good; requests on open connections are still answered."""
        self._draining = True
        self.engine.begin_drain()

    async def close_engines(self, timeout_s: float) -> None:
        """Close every engine, as `Engine.close`."""
        await asyncio.gather(*(engine.close(timeout_s) for engine in (self.engine, *self._draining_engines)))

    async def close(self, timeout_s: float) -> None:
        """Close every engine, and send the last traces."""
        for task in self._draining_engines.values():
            task.cancel()
        await self.close_engines(timeout_s)
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)

    def deadline(self) -> float:
        """Return when a request that was read now must be answered, on the event loop's clock."""
        return asyncio.get_running_loop().time() + self.settings.request_timeout_s

    def top_k(self, engine: Engine, given: int | None) -> int:
        """Return how many classes to answer with; raises InvalidRequestError for more than there are."""
        classes = len(engine.model.labels)
        if given is None:
            return min(self.settings.top_k, classes)
        if given > classes:
            raise InvalidRequestError(f"top_k must be from 1 to {classes}, got {given}")
        return given

    async def _load_engine_and_keys(self) -> tuple[APIKeys, Engine]:
        engine: Engine | None = None
        loading = WorkerPool(1, "load")  # which may take for ever, and must not keep the process from ending
        try:
            self._check_open()
            APIKeys.from_settings(self.settings)
            engine = await loading.run(self.load_engine)
            engine.start()
            await engine.wait_until_warm()
            self._check_open()
            keys = APIKeys.from_settings(self.settings)  # as they are now
        except BaseException as error:
            if engine is not None:
                await engine.close(timeout_s=0)
            if not isinstance(error, Exception):
                raise
            known = isinstance(error, ServiceError)
            if not known:
                _log.error("the model cannot be reloaded", exc_info=error)
            raise ReloadError(f"the old model goes on: {error if known else 'the log says why'}") from error
        finally:
            await loading.close(timeout_s=0)
        return keys, engine

    def _check_open(self) -> None:
        if self._draining:
            raise ServiceUnavailable("the service is shutting down")

    async def _drain_engine(self, engine: Engine) -> None:
        while self._refcounts[engine]:
            self._idle.clear()
            await self._idle.wait()
        await engine.close(self.settings.drain_timeout_s)
        del self._draining_engines[engine]


def build_app_state(
    settings: Settings, wrap: Callable[[Runtime], Runtime] = lambda runtime: runtime
) -> AppState:
    """Load the model onto its devices, as the settings say; this may download, and may take seconds.

    `wrap` is put around each runtime: a load test's, say, that makes it slow. Raises ModelLoadError,
    DeviceUnavailableError, InvalidAPIKeysError or MissingDependencyError with a message for people.
    """
    keys = APIKeys.from_settings(settings)
    metrics = Metrics()
    uploads = UploadMemory(int(settings.upload_memory_mb * 1e6))
    metrics.upload_bytes.set_function(lambda: uploads.used)
    load_engine = partial(_load_engine, settings, metrics, wrap)
    engine = load_engine()
    engine.bind_metrics()
    tracer = RequestTracer(settings.traces_url) if settings.traces_url else None
    return AppState(settings, engine, metrics, load_engine, keys, uploads, tracer)


def _load_engine(settings: Settings, metrics: Metrics, wrap: Callable[[Runtime], Runtime]) -> Engine:
    devices = choose_devices(settings.devices)
    model = load_model(settings.model, settings.weights)
    runtimes = create_runtimes(
        model,
        devices,
        name=settings.runtime,
        precision=settings.precision,
        streams_per_device=settings.streams_per_device,
        threads=settings.model_threads,
        compiled=settings.compile,
        cuda_graphs=settings.cuda_graphs,
    )
    return Engine(
        model,
        [wrap(runtime) for runtime in runtimes],
        metrics,
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
        max_wait_s=settings.max_wait_ms / 1e3,
        max_pixels=int(settings.max_megapixels * 1e6),
        decode_threads=settings.decode_threads,
        stall_timeout_s=settings.stall_timeout_s,
    )


async def get_state(request: Request) -> AppState:
    """Return what this application serves; async, because FastAPI runs others in a thread."""
    return cast(AppState, request.app.state.app_state)


StateDep = Annotated[AppState, Depends(get_state)]
