"""The explainers of the versions that serve, and the limit on the requests that wait for them."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final
from weakref import WeakKeyDictionary

import structlog
import torch

from resnet_service.errors import (
    DeadlineExceededError,
    InferenceError,
    ModelLoadError,
    OverloadedError,
    ServiceUnavailable,
    UnsupportedModelError,
)
from resnet_service.explanations import Explainer, Explanation, require_captum
from resnet_service.images import Crop
from resnet_service.inference.engine import Engine
from resnet_service.inference.worker_pool import WorkerPool
from resnet_service.models import ModelSource, load_model

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

_MAX_REQUESTS: Final = 8
"""Requests that run or wait, over all processes, of which each has at least one: of a ResNet-50, the last one
of eight waits for three seconds."""
_THREADS: Final = 1
"""Cores of an explanation; serving keeps the others."""


class Explainers:
    """Explains images on the CPU, one at a time, in a thread of its own.

    A runtime keeps no network that has gradients. So a network is loaded again when the first explanation of
    its version is requested, and kept until the version is unloaded or replaced.
    """

    def __init__(self) -> None:
        self._sources: WeakKeyDictionary[Engine, ModelSource] = WeakKeyDictionary()
        self._explainers: WeakKeyDictionary[Engine, Explainer | UnsupportedModelError] = WeakKeyDictionary()
        self._thread = WorkerPool(1, "explain")

    def add(self, engine: Engine, source: ModelSource) -> None:
        """Keep what the model of an engine was loaded from."""
        self._sources[engine] = source

    def remove(self, engine: Engine) -> None:
        """Free the network for an engine that does not serve any more."""
        self._explainers.pop(engine, None)

    async def explain(
        self, engine: Engine, crop: Crop, class_id: int | None, deadline: float | None
    ) -> Explanation:
        """Explain a class of `crop`, [S, S, 3], with the model of an engine: see `Backend.explain`."""
        require_captum()
        size, classes = engine.model.preprocessing.crop, len(engine.model.labels)
        if crop.shape[0] != size or (class_id or 0) >= classes:  # the request was checked against another one
            raise ServiceUnavailable("the model was replaced meanwhile; send the request again")
        try:
            async with asyncio.timeout_at(deadline):
                return await self._thread.run(self._explain, engine, crop, class_id)
        except TimeoutError as error:
            raise DeadlineExceededError("deadline exceeded before the image was explained") from error

    async def close(self, timeout_s: float) -> None:
        """Drop what waits, and wait up to `timeout_s` seconds for the explanation that runs."""
        await self._thread.close(timeout_s)

    def _explain(self, engine: Engine, crop: Crop, class_id: int | None) -> Explanation:
        explainer = self._explainers.get(engine)
        if explainer is None:
            explainer = self._explainers[engine] = self._load(engine)
        if isinstance(explainer, UnsupportedModelError):
            raise UnsupportedModelError(*explainer.args)
        return explainer.explain(crop, class_id)

    def _load(self, engine: Engine) -> Explainer | UnsupportedModelError:
        started = time.perf_counter()
        try:
            model = replace(load_model(self._sources[engine]), name=engine.key.name)
            served = engine.model
            if (model.labels, model.preprocessing) != (served.labels, served.preprocessing):
                raise ServiceUnavailable("the files of the model have changed since its load: reload it")
            explainer = Explainer(model, torch.device("cpu"), _THREADS)
        except ModelLoadError as error:
            _log.error("explainer_load_failed", model=engine.key.name, reason=str(error))
            raise InferenceError("the model cannot be loaded again for explanations; see the log") from error
        except UnsupportedModelError as error:
            return UnsupportedModelError(*error.args)  # its traceback refers to the weights
        seconds = round(time.perf_counter() - started, 3)
        _log.info("explainer_loaded", model=engine.key.name, version=engine.key.version, seconds=seconds)
        return explainer


class ExplanationLimit:
    """The number of requests for explanations that run or wait in this process, which is limited."""

    def __init__(self, processes: int = 1) -> None:
        """Create the share of one of the `processes` that handle HTTP."""
        self._limit = max(1, _MAX_REQUESTS // processes)
        self._requests = 0
        self._interval_s = 1.0  # from the end of one request to that of the next

    def check(self) -> None:
        """Raise OverloadedError if one more request is too many."""
        if self._requests >= self._limit:
            message = f"{self._requests} explanations run or wait, and more may not; try again later"
            raise OverloadedError(message, "queue_full", self._interval_s)

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count a request until the end of the block. Raises OverloadedError."""
        self.check()
        self._requests += 1
        started, requests = time.monotonic(), self._requests
        try:
            yield
        finally:
            self._requests -= 1
            self._interval_s = (time.monotonic() - started) / requests
