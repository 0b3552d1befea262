"""The state that all requests of an application share, and how it is built from the settings."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final, cast

import structlog
from fastapi import Depends, Request

from resnet_service.devices import choose_devices
from resnet_service.images.sandbox import RestartReason, Sandbox
from resnet_service.inference.engine import Engine
from resnet_service.inference.image_decoder import ImageDecoder
from resnet_service.inference.prediction_baseline import read_baseline
from resnet_service.inference.prediction_metrics import PredictionSettings
from resnet_service.inference.statistics import StatisticsTable
from resnet_service.log_config import count_dropped_lines
from resnet_service.machine import available_cpus
from resnet_service.metrics import Metrics
from resnet_service.models import load_model
from resnet_service.models.repository import VersionConfig
from resnet_service.runtimes import Runtime
from resnet_service.runtimes.selection import check_options, create_runtimes
from resnet_service.runtimes.sizing import DEFAULT_MAX_BATCH, limit_batches
from resnet_service.server.auth import APIKeys
from resnet_service.server.backend import Backend
from resnet_service.server.configured_models import configured_models
from resnet_service.server.engine_manager import EngineManager
from resnet_service.server.explainers import Explainers, ExplanationLimit
from resnet_service.server.local_backend import LocalBackend
from resnet_service.server.prediction_logging import create_prediction_log
from resnet_service.server.rpc import require_grpc
from resnet_service.server.uploads import UploadMemory
from resnet_service.settings import Settings
from resnet_service.tracing import RequestTracer, check_collector

if TYPE_CHECKING:  # it needs an extra
    from resnet_service.prediction_log.log import PredictionLog

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

CLOSE_TIMEOUT_S: Final = 0.8
"""For a batch or a decoder that hangs, and for the last spans: a part of the drain timeout."""
_CLOSE_MARGIN_S: Final = 1.0
"""Part of the drain timeout after the last file of the prediction log."""
_MAX_SMALL_HOST: Final = 4
"""Cores up to which a host without a GPU has one process."""
_MAX_AUTO_WORKERS: Final = 16
"""The main process can serve no more: see docs/scaling.md."""


@dataclass(eq=False)
class AppState:
    """Everything that requests share, from the start of the process to its end; see `build_app_state`.

    settings: the configuration, which never changes.
    backend: the models that are served, their devices, and the API keys.
    metrics: the Prometheus metrics of this application.
    upload_memory: the bytes of request bodies that are in memory.
    tracer: exports spans of requests; None if tracing is off.
    explanation_limit: how many requests for explanations this process may have.
    prediction_log: logs predictions; None without one, or in a process that handles no requests.
    """

    settings: Settings
    backend: Backend
    metrics: Metrics
    upload_memory: UploadMemory
    tracer: RequestTracer | None = None
    explanation_limit: ExplanationLimit = field(default_factory=ExplanationLimit)
    prediction_log: "PredictionLog | None" = None
    _drain_deadline: float | None = None

    def start(self) -> None:
        """Start to serve, on the running event loop."""
        self.backend.start()
        if self.prediction_log is not None:
            self.prediction_log.start()

    def begin_drain(self) -> None:
        """Stop being ready, for good; `close` has to end within the drain timeout from now on."""
        self._drain_deadline = time.monotonic() + self.settings.drain_timeout_s
        self.backend.begin_drain()

    async def close(self) -> None:
        """Close the backend once all requests have ended, and export the last spans, in CLOSE_TIMEOUT_S.

        The prediction log is written out, which may take what is left of the drain timeout.
        """
        closing: list[Awaitable[None]] = [
            self.backend.close(CLOSE_TIMEOUT_S / 3)
        ]  # takes up to three times that
        if self.tracer is not None:
            closing.append(asyncio.to_thread(self.tracer.close, CLOSE_TIMEOUT_S))
        if self.prediction_log is not None:
            left_s = 0.0 if self._drain_deadline is None else self._drain_deadline - time.monotonic()
            timeout_s = max(CLOSE_TIMEOUT_S, left_s - _CLOSE_MARGIN_S)
            closing.append(asyncio.to_thread(self.prediction_log.close, timeout_s))
        await asyncio.gather(*closing)


def build_app_state(
    settings: Settings,
    wrap_runtime: Callable[[Runtime], Runtime] = lambda runtime: runtime,
    *,
    workers: int = 0,
) -> AppState:
    """Load the models onto their devices and read the API keys; can take seconds and download weights.

    `wrap_runtime` is applied to each runtime; tests and load tests use it to delay batches. `workers` is the
    number of HTTP workers that `run_server` will start, for example `count_workers(settings)`. Raises
    ModelLoadError, DeviceUnavailableError, InvalidAPIKeysError, BaselineError, StorageError or
    MissingDependencyError, with a message for the operator.
    """
    api_keys = APIKeys.from_settings(settings)
    for device in choose_devices(settings.device):
        check_options(device, settings.runtime, settings.precision)  # before weights are downloaded
    if settings.grpc_port:
        require_grpc()
    configured = configured_models(settings)
    tracer = None
    if settings.traces_url:  # before the model loads
        tracer = RequestTracer(settings.traces_url)
        check_collector(settings.traces_url)
    metrics = Metrics()
    prediction_log = create_prediction_log(settings, metrics)  # before the model loads, too
    count_dropped_lines(metrics.log_lines_dropped.inc)
    upload_memory = UploadMemory(int(settings.upload_memory_mb * 1e6))
    metrics.report(metrics.upload_bytes, lambda: upload_memory.used)
    counters = StatisticsTable()
    decoder = create_decoder(settings, metrics)
    explainers = Explainers()
    create_engine = partial(_create_engine, settings, metrics, counters, decoder, workers, wrap_runtime)

    def load_engine(version: VersionConfig) -> Engine:
        engine = create_engine(version)
        explainers.add(engine, version.source)
        return engine

    engines = EngineManager(configured, load_engine, metrics, settings.drain_timeout_s)
    backend = LocalBackend(settings, engines, metrics, counters, decoder, explainers, api_keys, workers)
    if workers:
        prediction_log = None  # they have it; here, its folder was checked
    return AppState(settings, backend, metrics, upload_memory, tracer, prediction_log=prediction_log)


def count_workers(settings: Settings) -> int:
    """Return the number of HTTP workers; 0 if this process does everything.

    By default, with a GPU as many as leave two cores to the main process, which runs the device, and its
    copies. On a CPU the network itself needs most cores: one worker for each four, and none on small hosts.
    """
    if settings.workers != "auto":
        return settings.workers
    cores = available_cpus()
    if any(device.type != "cpu" for device in choose_devices(settings.device)):
        return min(_MAX_AUTO_WORKERS, max(0, cores - 2))
    return cores // 4 if cores > _MAX_SMALL_HOST else 0


def _create_engine(
    settings: Settings,
    metrics: Metrics,
    counters: StatisticsTable,
    decoder: ImageDecoder,
    workers: int,
    wrap_runtime: Callable[[Runtime], Runtime],
    version: VersionConfig,
) -> Engine:
    settings = settings.model_copy(update=version.options.model_dump(exclude_none=True))
    path = settings.prediction_baseline
    baseline = None if path is None else read_baseline(path).models.get(version.key.name)
    model = replace(load_model(version.source), name=version.key.name)
    runtimes = create_runtimes(
        model,
        choose_devices(settings.device),
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
        decoder,
        metrics,
        version=version.key.version,
        max_batch=settings.max_batch or DEFAULT_MAX_BATCH,
        batch_limit=limit_batches(model, runtimes, settings.max_batch, settings.model_threads),
        max_concurrency=settings.max_concurrency,
        max_queue=settings.max_queue or math.inf,
        max_queue_wait_s=settings.max_queue_wait_s,
        max_wait_s=settings.max_wait_ms / 1e3,
        workers=workers,
        stall_timeout_s=settings.stall_timeout_s,
        counters=counters.of(version.key).batches,
        predictions=PredictionSettings(settings.prediction_classes, baseline),
    )


def create_decoder(settings: Settings, metrics: Metrics) -> ImageDecoder:
    """Create the decoder of a process, which all models share."""
    return ImageDecoder(
        int(settings.max_megapixels * 1e6),
        metrics,
        threads=settings.decode_threads,
        sandbox=Sandbox(
            settings.sandbox_processes,
            memory_bytes=int(settings.sandbox_memory_mb * 1e6),
            timeout_s=settings.sandbox_timeout_s,
            on_restart=partial(_record_restart, metrics),
        ),
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
