"""Run images of one version of a model on another one as well, to compare them before it takes over."""

import asyncio
import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import structlog

from resnet_service.batching import BULK_INTERVAL, BatchResult, Lane
from resnet_service.errors import ModelLoadError, ServiceError
from resnet_service.images import Crop
from resnet_service.inference.engine import Engine
from resnet_service.inference.served_model import QueuedCrop
from resnet_service.metrics import Metrics
from resnet_service.models import ModelVersion
from resnet_service.models.repository import TrafficSplit
from resnet_service.runtimes import TopKResult

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

_MAX_WAITING_BATCHES: Final = 4
"""Batches of crops that wait for the shadow; further images are dropped."""


class _Sample(NamedTuple):
    crop: Crop
    result: TopKResult


class Shadow:
    """Runs a share of an engine's images on a second engine, and compares the results in metrics.

    No client waits for it. The crops are those that were decoded for the first engine. A batch of them runs
    when no image waits for the first engine, and otherwise after every eighth of its batches, as bulk images
    do (`BULK_INTERVAL`). Images that wait for too long are dropped, and counted.

        engine.observer = Shadow(engine, candidate, 10, metrics)
    """

    def __init__(self, engine: Engine, candidate: Engine, percent: float, metrics: Metrics) -> None:
        """Run `percent` percent of the images of `engine` on `candidate`. Raises ModelLoadError.

        Both must take the same crops.
        """
        if _pixels(engine) != _pixels(candidate):
            raise ModelLoadError(
                f"version {candidate.key.version} of {candidate.key.name!r} cannot be the shadow of version "
                f"{engine.key.version}: it resizes or crops images differently"
            )
        self._engine = engine
        self._candidate = candidate
        self._percent = percent
        self._waiting: deque[_Sample] = deque()
        self._running = 0
        self._batches = 0
        same_labels = engine.model.labels == candidate.model.labels
        # Labels can occur twice, such as ImageNet's "crane": indices are compared where they mean the same.
        self._indices = None if same_labels else {name: i for i, name in enumerate(candidate.model.labels)}
        outcome = metrics.shadow_images.labels
        self._agree, self._disagree, self._failed, self._dropped = (
            outcome(*candidate.key, name) for name in ("agree", "disagree", "failed", "dropped")
        )
        self._difference = metrics.shadow_difference.labels(*candidate.key)

    def runs(self, candidate: Engine, percent: float) -> bool:
        """Whether it runs this share of the images on this engine."""
        return self._candidate is candidate and self._percent == percent

    def sample(self, crops: Sequence[Crop]) -> dict[int, Crop]:
        """See `BatchObserver`: a share of the crops.

        They are copied before the batch runs, because the memory of a crop whose client has gone is used for
        another image.
        """
        samples: dict[int, Crop] = {}
        space = _MAX_WAITING_BATCHES * self._candidate.max_batch - len(self._waiting)
        for place, crop in enumerate(crops):
            if random.random() * 100 >= self._percent:  # noqa: S311 - a share, not a secret
                continue
            if len(samples) >= space:
                self._dropped.inc()
                continue
            try:
                samples[place] = crop.copy()
            except MemoryError:
                self._dropped.inc()
        return samples

    def observe(self, samples: dict[int, Crop], results: Sequence[TopKResult]) -> None:
        """See `BatchObserver`. Images whose result is not finite are dropped: their clients get errors."""
        self._batches += 1
        for place, crop in samples.items():
            if math.isfinite(results[place].probabilities[0]):
                self._waiting.append(_Sample(crop, results[place]))
            else:
                self._dropped.inc()
        if self._batches % BULK_INTERVAL == 0 or not self._engine.has_waiting_images:
            self._run_batch()

    def _run_batch(self) -> None:
        if self._running:
            return
        classes = len(self._candidate.model.labels)
        for _ in range(min(len(self._waiting), self._candidate.largest_batch)):
            sample = self._waiting.popleft()
            try:
                entry = self._candidate.enqueue(QueuedCrop(sample.crop, classes), None, Lane.BULK)
            except ServiceError:  # it is being unloaded
                self._dropped.inc()
                continue
            self._running += 1
            entry.future.add_done_callback(partial(self._finish, sample.result))

    def _finish(self, result: TopKResult, future: asyncio.Future[BatchResult[TopKResult]]) -> None:
        self._running -= 1
        if future.cancelled():
            self._dropped.inc()
        else:
            try:
                self._compare(result, future.result().result.top(1), future.result().result)
            except ServiceError as error:
                self._failed.inc()
                _log.warning("shadow_failed", **self._candidate.key._asdict(), reason=str(error))
        if not self._running and not self._engine.has_waiting_images:
            self._run_batch()

    def _compare(self, result: TopKResult, best_of_candidate: TopKResult, candidate: TopKResult) -> None:
        best: int | None = int(result.class_ids[0])
        if self._indices is not None:
            best = self._indices.get(self._engine.model.labels[int(result.class_ids[0])])
        places = np.flatnonzero(candidate.class_ids == (-1 if best is None else best))
        probability = float(candidate.probabilities[places[0]]) if places.size else 0.0
        (self._agree if int(best_of_candidate.class_ids[0]) == best else self._disagree).inc()
        self._difference.observe(abs(float(result.probabilities[0]) - probability))


def _pixels(engine: Engine) -> object:
    """Return what the crops of a model depend on: the device normalizes them."""
    preprocessing = engine.model.preprocessing
    return replace(preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def create_shadows(
    engines: Mapping[ModelVersion, Engine], traffic: Mapping[str, TrafficSplit], metrics: Metrics
) -> dict[Engine, Shadow]:
    """Return the shadows of these engines, by the engine that they observe. Raises ModelLoadError.

    A shadow whose engines and share have not changed is kept.
    """
    shadows: dict[Engine, Shadow] = {}
    for name, split in traffic.items():
        if split.version is None or split.shadow is None:
            continue
        engine, candidate = (
            engines[ModelVersion(name, version)] for version in (split.version, split.shadow)
        )
        current = engine.observer
        if not isinstance(current, Shadow) or not current.runs(candidate, split.shadow_percent):
            current = Shadow(engine, candidate, split.shadow_percent, metrics)
        shadows[engine] = current
    return shadows
