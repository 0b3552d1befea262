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

from service import hardware, models
from service.api.keys import Keys
from service.api.uploads import UploadMemory
from service.engine import Engine
from service.errors import Busy, InvalidRequest, NotReady, ReloadFailed, ServiceError
from service.metrics import Metrics
from service.runtimes import Runtime
from service.runtimes.selection import open_runtimes
from service.settings import Settings
from service.threads import Threads
from service.tracing import Traces

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)


@dataclass(eq=False)
class Service:
    """A loaded model with its settings, metrics and keys, for the life of the process.

    The engine can be replaced while requests are answered, each of which keeps to the one it has begun with.
    """

    settings: Settings
    engine: Engine
    metrics: Metrics
    load_engine: Callable[[], Engine]
    keys: Keys
    uploads: UploadMemory
    traces: Traces | None = None
    bench_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _draining: bool = False
    _reload_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _users: Counter[Engine] = field(default_factory=Counter)
    _retiring: dict[Engine, asyncio.Task[None]] = field(default_factory=dict)
    _unused: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def lend(self) -> Iterator[Engine]:
        """Give a request the engine, which stays open for it even if another takes its place."""
        engine = self.engine
        self._users[engine] += 1
        try:
            yield engine
        finally:
            self._users[engine] -= 1
            if not self._users[engine]:
                del self._users[engine]
                self._unused.set()

    async def reload(self) -> None:
        """Read the keys and load the model anew, from where the settings say; replace the old when warm.

        Raises ReloadFailed with the reason, and the old ones go on, and Busy during another reload.
        """
        if self.reloading:
            raise Busy("the model is being reloaded")
        async with self._reload_lock:
            keys, engine = await self._load_anew()
            old, self.engine, self.keys = self.engine, engine, keys
            engine.publish()
            self._retiring[old] = asyncio.create_task(self._retire(old))

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
        await asyncio.gather(*(engine.close(timeout_s) for engine in (self.engine, *self._retiring)))

    async def close(self, timeout_s: float) -> None:
        """Close every engine, and send the last traces."""
        for task in self._retiring.values():
            task.cancel()
        await self.close_engines(timeout_s)
        if self.traces is not None:
            await asyncio.to_thread(self.traces.close)

    def deadline(self) -> float:
        """Return when a request that was read now must be answered, on the event loop's clock."""
        return asyncio.get_running_loop().time() + self.settings.request_timeout_s

    def top_k(self, engine: Engine, given: int | None) -> int:
        """Return how many classes to answer with; raises InvalidRequest for more than there are."""
        classes = len(engine.model.labels)
        if given is None:
            return min(self.settings.top_k, classes)
        if given > classes:
            raise InvalidRequest(f"top_k must be from 1 to {classes}, got {given}")
        return given

    async def _load_anew(self) -> tuple[Keys, Engine]:
        engine: Engine | None = None
        loading = Threads(1, "load")  # which may take for ever, and must not keep the process from ending
        try:
            self._check_open()
            Keys.of(self.settings)
            engine = await loading.run(self.load_engine)
            engine.start()
            await engine.warm()
            self._check_open()
            keys = Keys.of(self.settings)  # as they are now
        except BaseException as error:
            if engine is not None:
                await engine.close(timeout_s=0)
            if not isinstance(error, Exception):
                raise
            known = isinstance(error, ServiceError)
            if not known:
                _log.error("the model cannot be reloaded", exc_info=error)
            raise ReloadFailed(f"the old model goes on: {error if known else 'the log says why'}") from error
        finally:
            await loading.close(timeout_s=0)
        return keys, engine

    def _check_open(self) -> None:
        if self._draining:
            raise NotReady("the service is shutting down")

    async def _retire(self, engine: Engine) -> None:
        while self._users[engine]:
            self._unused.clear()
            await self._unused.wait()
        await engine.close(self.settings.drain_timeout_s)
        del self._retiring[engine]


def load(settings: Settings, wrap: Callable[[Runtime], Runtime] = lambda runtime: runtime) -> Service:
    """Load the model onto its devices, as the settings say; this may download, and may take seconds.

    `wrap` is put around each runtime: a load test's, say, that makes it slow. Raises ModelUnavailable,
    DeviceUnavailable, KeysUnusable or ExtraMissing with a message for people.
    """
    keys = Keys.of(settings)
    metrics = Metrics()
    uploads = UploadMemory(int(settings.upload_memory_mb * 1e6))
    metrics.upload_bytes.set_function(lambda: uploads.held)
    load_engine = partial(_load_engine, settings, metrics, wrap)
    engine = load_engine()
    engine.publish()
    traces = Traces(settings.traces_url) if settings.traces_url else None
    return Service(settings, engine, metrics, load_engine, keys, uploads, traces)


def _load_engine(settings: Settings, metrics: Metrics, wrap: Callable[[Runtime], Runtime]) -> Engine:
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
    return Engine(
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


async def service_of(request: Request) -> Service:
    """Return what this application serves; async, because FastAPI runs others in a thread."""
    return cast(Service, request.app.state.service)


ServiceDep = Annotated[Service, Depends(service_of)]
