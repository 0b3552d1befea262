"""What one process serves, and how routes get at it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request

from service import hardware, models
from service.engine import Engine
from service.errors import InvalidRequest
from service.metrics import Metrics
from service.runtimes import Runtime
from service.runtimes.selection import open_runtimes
from service.settings import Settings
from service.tracing import Traces


@dataclass(frozen=True)
class Service:
    """A loaded model with its settings and metrics, for the life of the process."""

    settings: Settings
    engine: Engine
    metrics: Metrics
    traces: Traces | None = None
    bench_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def deadline(self) -> float:
        """Return when a request that was read now must be answered, on the event loop's clock."""
        return asyncio.get_running_loop().time() + self.settings.request_timeout_s

    def top_k(self, given: int | None) -> int:
        """Return how many classes to answer with; raises InvalidRequest for more than there are."""
        classes = len(self.engine.model.labels)
        if given is None:
            return min(self.settings.top_k, classes)
        if given > classes:
            raise InvalidRequest(f"top_k must be from 1 to {classes}, got {given}")
        return given


def load(settings: Settings, wrap: Callable[[Runtime], Runtime] = lambda runtime: runtime) -> Service:
    """Load the model onto its devices, as the settings say; this may download, and may take seconds.

    `wrap` is put around each runtime: a load test's, say, that makes it slow. Raises ModelUnavailable,
    DeviceUnavailable or ExtraMissing with a message for people.
    """
    devices = hardware.choose_devices(settings.devices)
    model = models.load(settings.model, settings.weights)
    runtimes = open_runtimes(
        model,
        devices,
        name=settings.runtime,
        precision=settings.precision,
        instances=settings.instances,
        threads=settings.model_threads,
        compiled=settings.compile,
        cuda_graphs=settings.cuda_graphs,
    )
    metrics = Metrics()
    engine = Engine(
        model,
        [wrap(runtime) for runtime in runtimes],
        metrics,
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
        max_wait_s=settings.max_wait_ms / 1e3,
        max_pixels=int(settings.max_pixels_mp * 1e6),
        decode_threads=settings.decode_threads,
        stall_timeout_s=settings.stall_timeout_s,
    )
    traces = Traces(settings.traces_url) if settings.traces_url else None
    return Service(settings, engine, metrics, traces)


async def service_of(request: Request) -> Service:
    """Return what this application serves; async, because FastAPI runs others in a thread."""
    return cast(Service, request.app.state.service)


ServiceDep = Annotated[Service, Depends(service_of)]
