"""Own the engines that serve requests, one for each version of each model, and replace them without a gap."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from typing import Final, TypeVar

import structlog

from resnet_service.batching import Lane
from resnet_service.errors import (
    Conflict,
    ModelNotFound,
    ReloadError,
    ServiceError,
    ServiceUnavailable,
)
from resnet_service.inference.engine import Engine
from resnet_service.inference.served_model import ImageReservation, ServedModel
from resnet_service.inference.shadow import Shadow, create_shadows
from resnet_service.inference.worker_pool import WorkerPool
from resnet_service.metrics import Metrics
from resnet_service.models import ModelVersion
from resnet_service.models.repository import ModelConfig, TrafficSplit, VersionConfig
from resnet_service.server.configured_models import ConfiguredModels
from resnet_service.server.model_table import ModelTable, replace_versions
from resnet_service.server.rejection_pacer import RejectionPacer

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

Config = TypeVar("Config")


class EngineManager:
    """The engines of all versions that serve, and those that were replaced but still have requests.

    Life cycle, on one event loop, which `loop` has as its result from `start` on:

    1. The constructor loads the engines of all configured models; it can take seconds.
    2. `start` warms them up in the background, one after the other; `wait_until_warm` waits for it.
    3. `admit` reserves a slot on an engine for one inference request; `acquire` returns an engine for
       another use. Both keep it open until their block ends.
    4. `load` and `reload` load engines, warm them up beside those that serve, and then use all of them in one
       step. An engine that is replaced, or that `unload` removes, is closed after its last request.
    5. `begin_drain` makes the service not ready for good, and `close` closes all engines.

    engines: those that serve, in the order of the models, with versions ascending.
    models: the same versions as requests see them.
    prepare: called before loaded engines are used; if it raises an error, they are not.
    on_change: called when the engines have changed, with those that do not serve any more.
    on_closed: called when such an engine is closed.
    """

    def __init__(
        self,
        configured: ConfiguredModels,
        load_engine: Callable[[VersionConfig], Engine],
        metrics: Metrics,
        drain_timeout_s: float,
    ) -> None:
        """Load the engines with `load_engine`. Raises what it and `configured` raise."""
        self.loop: Future[asyncio.AbstractEventLoop] = Future()
        self.load_engine = load_engine
        self.prepare: Callable[[Iterable[Engine]], None] = lambda _: None
        self.on_change: Callable[[Iterable[Engine]], None] = lambda _: None
        self.on_closed: Callable[[Engine], None] = lambda _: None
        self.configured = configured
        self.loading: frozenset[str] = frozenset()
        """The names of the models that are being loaded."""
        self._drain_timeout_s = drain_timeout_s
        self._is_draining = False
        self._warmup: asyncio.Task[None] | None = None
        self._change_lock = asyncio.Lock()
        self._request_counts: Counter[Engine] = Counter()
        self._replaced: dict[Engine, asyncio.Task[None]] = {}
        self._engine_released = asyncio.Event()
        self.rejections = RejectionPacer()
        self._metrics = metrics
        configs = [configured.read(name) for name in configured.names()]
        versions = [version for config in configs for version in config.versions]
        self.engines = {version.key: load_engine(version) for version in versions}
        traffic = {config.name: config.traffic for config in configs}
        self.models = _table(self.engines, traffic)
        self._observe(create_shadows(self.engines, traffic, metrics))

    @property
    def current(self) -> Engine:
        """The engine for requests that name neither a model nor a version, without canaries."""
        return self.engines[self.models.find().key]

    def find(self, key: ModelVersion) -> Engine:
        """Return the engine of a version. Raises ModelNotFound if it was unloaded."""
        engine = self.engines.get(key)
        if engine is None:
            raise ModelNotFound(f"version {key.version} of {key.name!r} was unloaded")
        return engine

    @property
    def is_warm(self) -> bool:
        """Whether all engines have been warmed up."""
        return all(engine.is_warm for engine in self.engines.values())

    @property
    def is_changing(self) -> bool:
        """Whether a load or reload is running."""
        return self._change_lock.locked()

    def start(self) -> None:
        """Start the warm-up in the background, on the running event loop."""
        self.loop.set_result(asyncio.get_running_loop())
        self._warmup = asyncio.create_task(self._warm_up())
        self._warmup.add_done_callback(lambda task: task.cancelled() or task.exception())  # engines have it

    async def _warm_up(self) -> None:
        for engine in self.engines.values():  # not at the same time: each measures the time of its batches
            engine.start()
            await engine.wait_until_warm()

    async def wait_until_warm(self) -> None:
        """Wait until the warm-up has finished; raises the error that it failed with."""
        if self._warmup is not None:
            await asyncio.shield(self._warmup)

    @contextmanager
    def acquire(self, engine: Engine) -> Iterator[Engine]:
        """Keep an engine open until the block ends, even if it is replaced."""
        self.hold(engine)
        try:
            yield engine
        finally:
            self.release(engine)

    def hold(self, engine: Engine) -> None:
        """Keep an engine open for one request until `release`; `acquire` does both."""
        self._request_counts[engine] += 1

    def release(self, engine: Engine) -> None:
        """End what `hold` has begun."""
        self._request_counts[engine] -= 1
        if not self._request_counts[engine]:
            del self._request_counts[engine]
            self._engine_released.set()

    @asynccontextmanager
    async def admit(
        self, key: ModelVersion, timeout_s: float, lane: Lane
    ) -> AsyncIterator[tuple[ServedModel, ImageReservation]]:
        """Yield a model and a reservation on it to one inference request, before its body is read.

        `timeout_s` is the time that the request may take, without that to receive its body. Raises
        ModelNotFound if the version was unloaded, and what `Engine.reserve` raises.
        """
        with self.acquire(self.find(key)) as engine:
            if engine.admission_wait(lane) > timeout_s:
                deadline = asyncio.get_running_loop().time() + timeout_s
                await self.rejections.delay(engine, deadline, lane)
                timeout_s = deadline - asyncio.get_running_loop().time()
            with engine.reserve(timeout_s, lane) as reservation:
                yield engine.served_model, reservation

    async def reload(self, read_config: Callable[[], Config], use_config: Callable[[Config], None]) -> None:
        """Load all models again, and those that are newly configured.

        `read_config` reads what has to change together with the engines, and `use_config` gets its value. It
        is called before an engine is loaded, so that an invalid configuration is reported immediately, and
        again after the warm-up. Models that were unloaded stay unloaded. Raises Conflict if a load is
        running, and ReloadError, with the reason, if an engine or the configuration cannot be used; nothing
        has then changed.
        """
        loaded = self.models.names
        await self._load(
            lambda: self.configured.loaded_names(loaded), read_config, use_config, keep_others=False
        )

    async def load(self, name: str) -> None:
        """Load all versions of a model, again if it is loaded. Versions that it has lost are unloaded.

        Raises ModelNotFound for a model that is not configured, and what `reload` raises.
        """
        await self._load(lambda: [name], lambda: None, lambda _: None, keep_others=True)
        self.configured.add(name)

    async def unload(self, name: str) -> None:
        """Remove all versions of a model; requests that were admitted are finished.

        Raises ModelNotFound, and Conflict for the last model or if a load is running.
        """
        await self.wait_until_warm()  # of the start: it would end with the first engine that is closed
        self.models.find(name)
        if self.is_changing:
            raise Conflict("a load or reload is running")
        if len(self.models.names) == 1:
            raise Conflict(f"{name!r} cannot be unloaded: it is the only model of this service")
        self.configured.remove(name)
        kept = {key: engine for key, engine in self.engines.items() if key.name != name}
        self._use(kept, self.models.traffic)

    def begin_drain(self) -> None:
        """Stop being ready, for good; requests on open connections still get a response."""
        self._is_draining = True
        for engine in self.engines.values():
            engine.begin_drain()

    async def close(self, timeout_s: float) -> None:
        """Close all engines as `Engine.close` does; may be called again, with another time limit."""
        for task in self._replaced.values():
            task.cancel()
        if self._warmup is not None:
            self._warmup.cancel()
        engines = (*self.engines.values(), *self._replaced)
        await asyncio.gather(*(engine.close(timeout_s) for engine in engines))

    async def _load(
        self,
        choose: Callable[[], list[str]],
        read_config: Callable[[], Config],
        use_config: Callable[[Config], None],
        *,
        keep_others: bool,
    ) -> None:
        """Load the chosen models, and use them and the configuration in one step."""
        if self.is_changing:
            raise Conflict("a load or reload is running")
        async with self._change_lock:
            loaded: dict[ModelVersion, Engine] = {}
            loader = WorkerPool(1, "load")
            try:
                self._check_not_draining()
                await self.wait_until_warm()
                read_config()
                configs = await loader.run(lambda: [self.configured.read(name) for name in choose()])
                self.loading = frozenset(config.name for config in configs)
                await self._load_warm_engines(configs, loader, loaded)
                self._check_not_draining()
                config = read_config()
                new = {config.name: config.traffic for config in configs}
                replaced = {key for key in self.engines if key.name in new or not keep_others}
                engines = replace_versions(self.engines, replaced, loaded)
                traffic = {**self.models.traffic, **new}
                create_shadows(engines, traffic, self._metrics)  # raises if one does not fit
                self.prepare(loaded.values())
            except BaseException as error:
                for engine in loaded.values():
                    await engine.close(timeout_s=0)
                if isinstance(error, ModelNotFound) or not isinstance(error, Exception):
                    raise
                raise ReloadError(f"the load failed, and nothing has changed: {_reason(error)}") from error
            finally:
                self.loading = frozenset()
                await loader.close(timeout_s=0)
            use_config(config)
            self._use(engines, traffic)

    async def _load_warm_engines(
        self, configs: Iterable[ModelConfig], loader: WorkerPool, loaded: dict[ModelVersion, Engine]
    ) -> None:
        for version in (version for config in configs for version in config.versions):
            engine = loaded[version.key] = await loader.run(self.load_engine, version)
            engine.start()
            await engine.wait_until_warm()

    def _use(self, engines: dict[ModelVersion, Engine], traffic: Mapping[str, TrafficSplit]) -> None:
        """Use these engines from now on, and close the others after their last requests."""
        removed = [engine for key, engine in self.engines.items() if engines.get(key) is not engine]
        self.engines = engines
        self.models = _table(engines, traffic)
        self._observe(create_shadows(engines, self.models.traffic, self._metrics))
        for engine in removed:
            self._replaced[engine] = asyncio.create_task(self._close_after_last_request(engine))
        self.on_change(removed)

    def _observe(self, shadows: Mapping[Engine, Shadow]) -> None:
        for engine in self.engines.values():
            engine.observer = shadows.get(engine)

    def _check_not_draining(self) -> None:
        if self._is_draining:
            raise ServiceUnavailable("the service is shutting down")

    async def _close_after_last_request(self, engine: Engine) -> None:
        while self._request_counts[engine]:
            self._engine_released.clear()
            await self._engine_released.wait()
        await engine.close(self._drain_timeout_s)
        del self._replaced[engine]
        self.on_closed(engine)


def _table(engines: Mapping[ModelVersion, Engine], traffic: Mapping[str, TrafficSplit]) -> ModelTable:
    return ModelTable({key: engine.served_model for key, engine in engines.items()}, traffic)


def _reason(error: Exception) -> str:
    if isinstance(error, ServiceError):
        return str(error)
    _log.error("engine_load_failed", exc_info=error)  # its message may show internals
    return "internal error, see the log"
