"""The state that all requests of an application share, and how it is built from the settings."""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Final, cast

import structlog
from fastapi import Depends, Request

from resnet_service.devices import choose_devices
from resnet_service.images.sandbox import RestartReason, Sandbox
from resnet_service.inference.engine import Engine
from resnet_service.inference.image_decoder import ImageDecoder
from resnet_service.metrics import Metrics
from resnet_service.models import load_model
from resnet_service.runtimes import Runtime
from resnet_service.runtimes.selection import create_runtimes
from resnet_service.server.auth import APIKeys
from resnet_service.server.engine_manager import EngineManager
from resnet_service.server.uploads import UploadMemory
from resnet_service.settings import Settings
from resnet_service.tracing import RequestTracer

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)


class Heartbeat:
    """When the event loop of the main port last ran. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._beat_at: float | None = None

    @property
    def age_s(self) -> float:
        """Seconds since the last `beat`; 0 before the first one and after `stop`."""
        beat_at = self._beat_at
        return 0.0 if beat_at is None else time.monotonic() - beat_at

    def beat(self) -> None:
        """Record that the event loop runs."""
        self._beat_at = time.monotonic()

    def stop(self) -> None:
        """End the supervision of the event loop."""
        self._beat_at = None


@dataclass(eq=False)
class AppState:
    """Everything that requests share, from the start of the process to its end; see `build_app_state`.

    settings: the configuration, which never changes.
    engines: the engine that serves requests, and its replacement by `reload`.
    metrics: the Prometheus metrics of this application.
    api_keys: the API keys; `reload` replaces them.
    upload_memory: the bytes of request bodies that are in memory.
    tracer: exports spans of requests; None if tracing is off.
    bench_lock: held while a benchmark runs, because two would measure each other.
    heartbeat: tells the management port whether the event loop of the main port runs.
    """

    settings: Settings
    engines: EngineManager
    metrics: Metrics
    api_keys: APIKeys
    upload_memory: UploadMemory
    tracer: RequestTracer | None = None
    bench_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    heartbeat: Heartbeat = field(default_factory=Heartbeat)

    @property
    def engine(self) -> Engine:
        """The current engine; to run images on it, use `engines.acquire`, which keeps it open."""
        return self.engines.current

    async def reload(self) -> None:
        """Load the model and read the API keys again, and replace both after the warm-up.

        May be called on any event loop. Raises ReloadError, which leaves both unchanged, and Conflict if a
        reload is running.
        """
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._reload(), self.engines.loop))

    async def _reload(self) -> None:
        self.api_keys = await self.engines.reload(partial(APIKeys.from_settings, self.settings))

    async def close(self, timeout_s: float) -> None:
        """Close all engines, as `Engine.close` does, and export the last spans."""
        await self.engines.close(timeout_s)
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)


def build_app_state(
    settings: Settings, wrap_runtime: Callable[[Runtime], Runtime] = lambda runtime: runtime
) -> AppState:
    """Load the model onto its devices and read the API keys; can take seconds and download weights.

    `wrap_runtime` is applied to each runtime; tests and load tests use it to delay batches. Raises
    ModelLoadError, DeviceUnavailableError, InvalidAPIKeysError or MissingDependencyError, with a message
    for the operator.
    """
    api_keys = APIKeys.from_settings(settings)
    metrics = Metrics()
    upload_memory = UploadMemory(int(settings.upload_memory_mb * 1e6))
    metrics.upload_bytes.set_function(lambda: upload_memory.used)
    metrics.queue_wait_limit.set(settings.max_queue_wait_s)
    engines = EngineManager(
        partial(_create_engine, settings, metrics, wrap_runtime), settings.drain_timeout_s
    )
    tracer = RequestTracer(settings.traces_url) if settings.traces_url else None
    return AppState(settings, engines, metrics, api_keys, upload_memory, tracer)


def _create_engine(
    settings: Settings, metrics: Metrics, wrap_runtime: Callable[[Runtime], Runtime]
) -> Engine:
    devices = choose_devices(settings.device)
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
        [wrap_runtime(runtime) for runtime in runtimes],
        metrics,
        max_batch=settings.max_batch,
        max_concurrency=settings.max_concurrency,
        max_queue=settings.max_queue or math.inf,
        max_queue_wait_s=settings.max_queue_wait_s,
        max_wait_s=settings.max_wait_ms / 1e3,
        decoder=ImageDecoder(
            model.preprocessing,
            int(settings.max_megapixels * 1e6),
            metrics,
            threads=settings.decode_threads,
            sandbox=Sandbox(
                settings.sandbox_processes,
                memory_bytes=int(settings.sandbox_memory_mb * 1e6),
                timeout_s=settings.sandbox_timeout_s,
                on_restart=partial(_record_restart, metrics),
            ),
        ),
        stall_timeout_s=settings.stall_timeout_s,
    )


def _record_restart(metrics: Metrics, reason: RestartReason) -> None:
    metrics.sandbox_restarts.labels(reason).inc()
    _log.warning("sandbox_restarted", reason=reason)


async def get_state(request: Request) -> AppState:
    """Return the application's state, for routes that need no API key.

    Async, because FastAPI runs dependencies that are not in a thread.
    """
    return cast(AppState, request.app.state.app_state)


StateDep = Annotated[AppState, Depends(get_state)]
