"""Decode and classify the images of requests: decoding threads or sandbox -> reservation -> result.

The reservation runs the decoded image on a device, of this process or of another one. This module does not
depend on HTTP.
"""

import time
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple, Protocol

from resnet_service.batching import BatchResult, Lane
from resnet_service.errors import InvalidRequestError
from resnet_service.images import Crop
from resnet_service.inference.image_decoder import ImageDecoder
from resnet_service.inference.image_limits import ImageLimits
from resnet_service.inference.prediction_metrics import PredictionMetrics, PredictionSettings
from resnet_service.inference.request_timing import RequestTiming
from resnet_service.metrics import Metrics
from resnet_service.models import ModelDescription, ModelVersion
from resnet_service.runtimes import TopKResult


class QueuedCrop(NamedTuple):
    """One decoded image, the number of classes that its request asks for, and whether for the embedding."""

    crop: Crop
    top_k: int
    with_embedding: bool = False


class ReceivingRequest(Protocol):
    """A request whose body is received; `resnet_service.batching.Reservation` describes the methods."""

    lane: Lane
    """The lane of the images that are queued from now on."""

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


class ImageReservation(ReceivingRequest, Protocol):
    """The admission of one request; `resnet_service.batching.Reservation` describes the methods."""

    def limit(self, seconds: float) -> None:
        """Let the request take at most `seconds`, without the time to receive its body."""
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
        largest_batch: Callable[[], int],
        predictions: PredictionSettings = PredictionSettings(),  # noqa: B008 - immutable
    ) -> None:
        """Create a model that runs batches of at most `max_batch` images.

        `largest_batch` returns the size of the batches that are formed, which the warm-up determines.
        `predictions` says how its predictions are counted.
        """
        self.model = model
        self._largest_batch = largest_batch
        self.placement = placement
        self.max_batch = max_batch
        self.decoder = decoder
        self.loaded_at = time.time()
        self._metrics = metrics
        self.predictions = PredictionMetrics(metrics, model, predictions)

    @property
    def key(self) -> ModelVersion:
        """Its name and version."""
        return self.model.key

    @property
    def largest_batch(self) -> int:
        """The largest batch that is formed."""
        return self._largest_batch()

    def top_k(self, values: Iterable[int | None], default: int) -> int:
        """Return the number of classes to return: the only value in `values`, or `default` if all are None.

        A request may have the value in several places. Raises InvalidRequestError if the values differ, or if
        the model has fewer classes.
        """
        classes = len(self.model.labels)
        requested = sorted({value for value in values if value is not None})
        if not requested:
            return min(default, classes)
        if len(requested) > 1:
            raise InvalidRequestError(f"top_k is {requested[0]} and {requested[1]} in the same request")
        if requested[0] > classes:
            raise InvalidRequestError(f"top_k must be from 1 to {classes}, got {requested[0]}")
        return requested[0]

    def image_limits(self) -> ImageLimits:
        """Return the limits of a request with several images: a batch for each stream of each device."""
        return ImageLimits(self.decoder.threads.count, self.largest_batch * self.placement.streams)

    async def classify(
        self,
        data: bytes | bytearray,
        top_k: int,
        reservation: ImageReservation,
        timing: RequestTiming,
        limits: ImageLimits | None = None,
        *,
        with_embedding: bool = False,
    ) -> TopKResult:
        """Classify one encoded image and return its `top_k` best classes, [top_k].

        `top_k` is from 1 to the number of classes, and `limits` those of a request with several images. The
        result has the embedding, [D], if it is requested and the model has one. Raises what
        `resnet_service.images.decode_image` and `Reservation.run` raise.
        """

        async def prepare() -> QueuedCrop:
            started = time.perf_counter()
            preprocessing = self.model.preprocessing
            crop = await self.decoder.decode(data, preprocessing, reservation.deadline, reservation.lane)
            timing.record("decode", started, time.perf_counter())
            return QueuedCrop(crop, top_k, with_embedding)

        return await self._run(prepare, top_k, reservation, timing, limits)

    async def classify_crop(
        self,
        crop: Crop | Callable[[], Crop],
        top_k: int,
        reservation: ImageReservation,
        timing: RequestTiming,
        limits: ImageLimits | None = None,
        *,
        with_embedding: bool = False,
    ) -> TopKResult:
        """Classify a crop, [S, S, 3] uint8; a function `crop` is called in a decoding thread to create it."""

        async def prepare() -> QueuedCrop:
            if not callable(crop):
                return QueuedCrop(crop, top_k, with_embedding)
            started = time.perf_counter()
            created = await self.decoder.run(reservation.deadline, crop, lane=reservation.lane)
            timing.record("decode", started, time.perf_counter())
            return QueuedCrop(created, top_k, with_embedding)

        return await self._run(prepare, top_k, reservation, timing, limits)

    async def _run(
        self,
        prepare: Callable[[], Awaitable[QueuedCrop]],
        top_k: int,
        reservation: ImageReservation,
        timing: RequestTiming,
        limits: ImageLimits | None,
    ) -> TopKResult:
        self._metrics.in_flight.inc()
        try:
            if limits is None:
                output = await reservation.run(prepare)
            else:
                output = await limits.run(prepare, reservation.run, reservation.deadline)
            result = output.result.top(top_k)
        except BaseException as error:
            timing.fail(error)
            raise
        finally:
            self._metrics.in_flight.dec()
        timing.has_result = True
        self.predictions.record(result)
        timing.record("queue", output.enqueued_at, output.started_at)
        timing.record("device", output.started_at, output.finished_at)
        return result
