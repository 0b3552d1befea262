"""Own the engine that serves requests, and replace it without interrupting them."""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from typing import Final, TypeVar

import structlog

from resnet_service.batching import Lane
from resnet_service.errors import Conflict, OverloadedError, ReloadError, ServiceError, ServiceUnavailable
from resnet_service.inference.engine import Engine
from resnet_service.inference.served_model import ImageReservation, ServedModel
from resnet_service.inference.worker_pool import WorkerPool

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

Config = TypeVar("Config")

_REJECTIONS_PER_S: Final = 100
_MAX_REJECTION_DELAY_S: Final = 20.0
_MIN_MAX_DELAY_S: Final = 1.0
"""A rejection is delayed for so long even if its request may take less time."""
_CHECK_INTERVAL_S: Final = 0.5
"""Time between two checks whether a request that is delayed can be accepted."""


class RejectionPacer:
    """Delays rejections beyond a rate: clients that retry at once would take all the time of the event loop.

    With 4,000 such clients and 1,540 rejections per second, 61 of 207 requests per second were classified.
    With 653 KB, it was 56 to 60 per second with 150 rejections, and 79 to 83 with 60.
    """

    def __init__(self) -> None:
        self._next_at = -math.inf

    def next_delay(self, now: float) -> float:
        """Return the seconds by which to delay the next rejection: 0 up to the rate, counted over one second.

        `now` is a time in seconds on any steady clock.
        """
        due_at = min(max(self._next_at, now - 1), now + _MAX_REJECTION_DELAY_S)
        self._next_at = due_at + 1 / _REJECTIONS_PER_S
        return max(0.0, due_at - now)

    async def wait(self, is_overloaded: Callable[[], bool], max_delay_s: float) -> None:
        """Wait for the delay of the next rejection, or until `is_overloaded` returns false.

        The delay is at most `max_delay_s` seconds.
        """
        time = asyncio.get_running_loop().time
        end = time() + min(self.next_delay(time()), max_delay_s)
        while (left := end - time()) > 0 and is_overloaded():  # noqa: ASYNC110 - no event tells when
            await asyncio.sleep(min(left, _CHECK_INTERVAL_S))


class EngineManager:
    """The current engine and the engines that it has replaced but that still have requests.

    Life cycle, on one event loop, which `loop` has as its result from `start` on:

    1. The constructor loads the first engine; it can take seconds.
    2. `start` starts its warm-up in the background; `wait_until_warm` waits for it.
    3. `admit` reserves a slot on the current engine for one inference request; `acquire` returns the engine
       for another use. Both keep it open until their block ends.
    4. `reload` loads and warms up another engine, makes it the current one, and closes the previous one
       after its last request.
    5. `begin_drain` makes the service not ready for good, and `close` closes all engines.
    """

    def __init__(self, load_engine: Callable[[], Engine], drain_timeout_s: float) -> None:
        """Load the first engine with `load_engine`, which `reload` calls again."""
        self.loop: Future[asyncio.AbstractEventLoop] = Future()
        self.load_engine = load_engine
        self.current = load_engine()
        self.current.bind_metrics()
        self._drain_timeout_s = drain_timeout_s
        self._is_draining = False
        self._reload_lock = asyncio.Lock()
        self._request_counts: Counter[Engine] = Counter()
        self._replaced: dict[Engine, asyncio.Task[None]] = {}
        self._engine_released = asyncio.Event()
        self._rejections = RejectionPacer()

    @property
    def is_reloading(self) -> bool:
        """Whether a `reload` is running."""
        return self._reload_lock.locked()

    def start(self) -> None:
        """Start the warm-up of the first engine in the background, on the running event loop."""
        self.loop.set_result(asyncio.get_running_loop())
        self.current.start()

    async def wait_until_warm(self) -> None:
        """Wait until the warm-up has finished; raises the error that it failed with."""
        await self.current.wait_until_warm()

    @contextmanager
    def acquire(self) -> Iterator[Engine]:
        """Yield the current engine to one request; it stays open until the block ends, even if replaced."""
        engine = self.current
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

    async def delay_rejection(self, engine: Engine, deadline: float, lane: Lane) -> None:
        """Wait before a request is rejected, or until `engine` can accept it.

        `deadline` is that of the request on the event loop's clock. Raises OverloadedError if it passes.
        """
        time = asyncio.get_running_loop().time
        max_delay_s = max(deadline - time(), _MIN_MAX_DELAY_S)
        await self._rejections.wait(lambda: engine.is_overloaded(deadline - time(), lane), max_delay_s)
        if time() >= deadline:
            raise OverloadedError("the deadline passed before the request was accepted", "deadline", 1.0)

    @asynccontextmanager
    async def admit(
        self, timeout_s: float, lane: Lane
    ) -> AsyncIterator[tuple[ServedModel, ImageReservation]]:
        """Yield the current model and a reservation on it to one inference request, before its body is read.

        `timeout_s` is the time that the request may take, without that to receive its body. Raises what
        `Engine.reserve` raises.
        """
        with self.acquire() as engine:
            if engine.is_overloaded(timeout_s, lane):
                deadline = asyncio.get_running_loop().time() + timeout_s
                await self.delay_rejection(engine, deadline, lane)
                timeout_s = deadline - asyncio.get_running_loop().time()
            with engine.reserve(timeout_s, lane) as reservation:
                yield engine.served_model, reservation

    async def reload(self, read_config: Callable[[], Config]) -> Config:
        """Load a new engine, warm it up, make it the current one, and return the value of `read_config`.

        `read_config` reads what has to change together with the engine. It is called before the engine is
        loaded, so that an invalid configuration is reported immediately, and again after the warm-up.
        Raises Conflict if a reload is running, and ReloadError, with the reason, if the engine or the
        configuration cannot be used; the current engine then stays.
        """
        if self.is_reloading:
            raise Conflict("a reload is already running")
        async with self._reload_lock:
            engine, config = await self._load_warm_engine(read_config)
            previous, self.current = self.current, engine
            engine.bind_metrics()
            self._replaced[previous] = asyncio.create_task(self._close_after_last_request(previous))
            return config

    def begin_drain(self) -> None:
        """Stop being ready, for good; requests on open connections still get a response."""
        self._is_draining = True
        self.current.begin_drain()

    async def close(self, timeout_s: float) -> None:
        """Close all engines as `Engine.close` does; may be called again, with another time limit."""
        for task in self._replaced.values():
            task.cancel()
        await asyncio.gather(*(engine.close(timeout_s) for engine in (self.current, *self._replaced)))

    async def _load_warm_engine(self, read_config: Callable[[], Config]) -> tuple[Engine, Config]:
        engine: Engine | None = None
        loader = WorkerPool(1, "load")
        try:
            self._check_not_draining()
            read_config()
            engine = await loader.run(self.load_engine)
            engine.start()
            await engine.wait_until_warm()
            self._check_not_draining()
            return engine, read_config()
        except BaseException as error:
            if engine is not None:
                await engine.close(timeout_s=0)
            if not isinstance(error, Exception):
                raise
            if isinstance(error, ServiceError):
                reason = str(error)
            else:  # its message may show internals
                _log.error("engine_load_failed", exc_info=error)
                reason = "internal error, see the log"
            raise ReloadError(f"reload failed, still serving the previous model: {reason}") from error
        finally:
            await loader.close(timeout_s=0)

    def _check_not_draining(self) -> None:
        if self._is_draining:
            raise ServiceUnavailable("the service is shutting down")

    async def _close_after_last_request(self, engine: Engine) -> None:
        while self._request_counts[engine]:
            self._engine_released.clear()
            await self._engine_released.wait()
        await engine.close(self._drain_timeout_s)
        del self._replaced[engine]
