"""Count inference requests and their images by model and outcome, from the responses that clients get.

Each request is counted once, by construction: when its response has been sent, whatever ended it.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from resnet_service.errors import ServiceError
from resnet_service.inference.request_timing import STAGES, RequestTiming
from resnet_service.inference.statistics import RequestCounters
from resnet_service.metric_labels import IMAGE_OUTCOMES
from resnet_service.metrics import Metrics
from resnet_service.models import ModelVersion
from resnet_service.server.exception_handlers import AUTH_ERRORS, status_of

CLIENT_CLOSED: Final = 499
"""The status recorded for a request whose client disconnected; no client receives it (nginx's number)."""


class ModelMetrics:
    """Counts the images, rejections, durations and statistics of all models."""

    def __init__(self, metrics: Metrics, counters: Callable[[ModelVersion], RequestCounters]) -> None:
        """Count requests in what `counters` returns for a version."""
        self._metrics = metrics
        self._counters = counters
        self._versions: dict[ModelVersion | None, _VersionMetrics] = {}

    def count(self, key: ModelVersion | None, status: int, timing: RequestTiming) -> None:
        """Count an inference request; `status` is that of its response in HTTP.

        `key` is None if the request ended before its model was known. A request with several images counts
        each of them by its own result. One that ends before its images are known counts as one image. A
        request without a valid key is not one of the model.
        """
        version = self._versions.get(key)
        if version is None:
            version = self._versions[key] = _VersionMetrics(
                self._metrics, key, None if key is None else self._counters(key)
            )
        version.count(status, timing)


class _VersionMetrics:
    def __init__(self, metrics: Metrics, key: ModelVersion | None, counters: RequestCounters | None) -> None:
        labels = ("", "") if key is None else key
        # Each call of `labels` takes 1 us.
        self._outcomes = {outcome: metrics.images.labels(*labels, outcome) for outcome in IMAGE_OUTCOMES}
        self._stage_seconds = {stage: metrics.stage_seconds.labels(*labels, stage) for stage in STAGES}
        self._labels = labels
        self._rejected = metrics.rejected
        self._counters = counters

    def count(self, status: int, timing: RequestTiming) -> None:
        for stage, seconds in timing.observations():
            self._stage_seconds[stage].observe(seconds)
        if self._counters is not None:
            if status == 200:
                self._counters.add_success(timing)
            elif not (timing.error and issubclass(timing.error, AUTH_ERRORS)):
                self._counters.add_failure(timing)
        if not timing.images:
            self._count_one(status, timing)
        for image in timing.images:
            self._count_one(_image_status(image), image)

    def _count_one(self, status: int, timing: RequestTiming) -> None:
        if timing.rejection_reason is not None and status != 200:
            self._rejected.labels(*self._labels, timing.rejection_reason).inc()
        self._outcomes[_outcome(status)].inc()


def _image_status(image: RequestTiming) -> int:
    """Return the status of one image of several; 499 if it was cancelled, as by another's failure."""
    if image.has_result:
        return 200
    if image.error is None or issubclass(image.error, asyncio.CancelledError):
        return CLIENT_CLOSED
    return status_of(image.error) if issubclass(image.error, ServiceError) else 500


def _outcome(status: int) -> str:
    match status:
        case 200:
            return "ok"
        case 429 | 503:
            return "rejected"
        case 504:
            return "expired"
        case 499:
            return "cancelled"
        case _ if status < 500:
            return "invalid"
        case _:
            return "failed"
