"""Classify the images of requests with the model that is served: decode -> reservation -> result.

The reservation runs the decoded image on a device, of this process or of another one. This module does not
depend on HTTP.
"""

import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from resnet_service.batching import BatchResult
from resnet_service.errors import InvalidRequestError
from resnet_service.images import Crop
from resnet_service.inference.image_decoder import ImageDecoder
from resnet_service.inference.request_timing import RequestTiming
from resnet_service.metrics import Metrics
from resnet_service.models import ModelDescription
from resnet_service.runtimes import TopKResult


class QueuedCrop(NamedTuple):
    """One decoded image and the number of classes that its request asks for."""

    crop: Crop
    top_k: int


class ImageReservation(Protocol):
    """The admission of one request; `resnet_service.batching.Reservation` describes the methods."""

    @property
    def deadline(self) -> float | None:
        """The time on the event loop's clock at which the request has to be finished."""
        ...

    async def start(self) -> None:
        """Wait until the request may be read and run."""
        ...

    def suspend(self) -> None:
        """Let others run until the next `start`."""
        ...

    def extend(self, seconds: float) -> None:
        """Move the deadline."""
        ...

    async def run(self, prepare: Callable[[], Awaitable[QueuedCrop]]) -> BatchResult[TopKResult]:
        """Run the image that `prepare` returns."""
        ...


class Placement(NamedTuple):
    """Where a model runs: devices (separated by commas), precision, runtime, and batches at a time."""

    devices: str
    precision: str
    runtime: str
    streams: int


class ServedModel:
    """A model as requests use it: its description, its decoder, and where it runs.

    result = await served_model.classify(jpeg, 5, reservation, RequestTiming())
    """

    def __init__(
        self,
        model: ModelDescription,
        placement: Placement,
        max_batch: int,
        decoder: ImageDecoder,
        metrics: Metrics,
    ) -> None:
        """Create a model that runs batches of at most `max_batch` images."""
        self.model = model
        self.placement = placement
        self.max_batch = max_batch
        self.decoder = decoder
        self._metrics = metrics

    def top_k(self, requested: int | None, default: int) -> int:
        """Return the number of classes to return: `requested`, or `default` if it is None.

        Raises InvalidRequestError if the model has fewer classes than requested.
        """
        classes = len(self.model.labels)
        if requested is None:
            return min(default, classes)
        if requested > classes:
            raise InvalidRequestError(f"top_k must be from 1 to {classes}, got {requested}")
        return requested

    async def classify(
        self, data: bytes | bytearray, top_k: int, reservation: ImageReservation, timing: RequestTiming
    ) -> TopKResult:
        """Classify one encoded image and return its `top_k` best classes, [top_k].

        `top_k` is from 1 to the number of classes. Raises what `resnet_service.images.decode_image` and
        `Reservation.run` raise.
        """

        async def prepare() -> QueuedCrop:
            started = time.perf_counter()
            crop = await self.decoder.decode(data, reservation.deadline)
            timing.record("decode", started, time.perf_counter())
            return QueuedCrop(crop, top_k)

        return await self._run(prepare, top_k, reservation, timing)

    async def classify_crop(
        self,
        crop: Crop | Callable[[], Crop],
        top_k: int,
        reservation: ImageReservation,
        timing: RequestTiming,
    ) -> TopKResult:
        """Classify a crop, [S, S, 3] uint8; a function `crop` is called in a decoding thread to create it."""

        async def prepare() -> QueuedCrop:
            if not callable(crop):
                return QueuedCrop(crop, top_k)
            started = time.perf_counter()
            created = await self.decoder.run(reservation.deadline, crop)
            timing.record("decode", started, time.perf_counter())
            return QueuedCrop(created, top_k)

        return await self._run(prepare, top_k, reservation, timing)

    async def _run(
        self,
        prepare: Callable[[], Awaitable[QueuedCrop]],
        top_k: int,
        reservation: ImageReservation,
        timing: RequestTiming,
    ) -> TopKResult:
        self._metrics.in_flight.inc()
        try:
            output = await reservation.run(prepare)
            result = output.result.top(top_k)
        except BaseException as error:
            self._metrics.count_failure(error)
            raise
        finally:
            self._metrics.in_flight.dec()
        self._metrics.images.labels("ok").inc()
        timing.record("queue", output.enqueued_at, output.started_at)
        timing.record("device", output.started_at, output.finished_at)
        return result
