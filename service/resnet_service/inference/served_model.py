"""Decode and classify the images of requests: decoding threads or sandbox -> reservation -> result.

The reservation runs the decoded image on a device, of this process or of another one. This module does not
depend on HTTP.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeVar

from resnet_service.batching import BatchResult, Lane
from resnet_service.errors import DeadlineExceededError, InvalidRequestError
from resnet_service.images import JPEG_SIGNATURE, Crop, Preprocessing, Sandbox, decode_jpeg
from resnet_service.inference.image_limits import ImageLimits
from resnet_service.inference.request_timing import RequestTiming
from resnet_service.inference.worker_pool import WorkerPool
from resnet_service.machine import available_cpus
from resnet_service.metrics import Metrics
from resnet_service.models import ModelDescription
from resnet_service.runtimes import TopKResult

Value = TypeVar("Value")


class QueuedCrop(NamedTuple):
    """One decoded image and the number of classes that its request asks for."""

    crop: Crop
    top_k: int


class ImageReservation(Protocol):
    """The admission of one request; `resnet_service.batching.Reservation` describes the methods."""

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


class ImageDecoder:
    """Decodes images to the crops that a model takes, on one event loop, until `close`.

    decoder = ImageDecoder(model.preprocessing, 50_000_000, Metrics(), sandbox=Sandbox(2))
    crop = await decoder.decode(data, deadline=None)
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        max_pixels: int,
        metrics: Metrics,
        *,
        threads: int | None = None,
        sandbox: Sandbox | None = None,
    ) -> None:
        """Create the pools; threads and processes start as they are needed.

        `threads` is by default one per CPU core, `sandbox` one with the default limits.
        """
        self._preprocessing = preprocessing
        self._max_pixels = max_pixels
        self._metrics = metrics
        self._sandbox = sandbox or Sandbox()
        busy_seconds = metrics.decode_busy_seconds.labels
        self.threads = WorkerPool(threads or available_cpus(), "decode", busy_seconds("threads").inc)
        # A thread per process waits for its result.
        self._sandbox_threads = WorkerPool(
            self._sandbox.processes,
            "sandbox",
            busy_seconds("sandbox").inc,
            bulk_calls=self._sandbox.processes + 1,  # they take long
        )

    def bind_metrics(self) -> None:
        """Make the gauges report this decoder."""
        self._metrics.decode_workers.labels("threads").set(self.threads.count)
        self._metrics.decode_workers.labels("sandbox").set(self._sandbox_threads.count)
        self._metrics.report(
            self._metrics.decode_waiting, lambda: self.threads.waiting + self._sandbox_threads.waiting
        )

    async def decode(
        self, data: bytes | bytearray, deadline: float | None, lane: Lane = Lane.INTERACTIVE
    ) -> Crop:
        """Decode an encoded image; interactive ones go first.

        Raises what `resnet_service.images.decode_image` raises, and DeadlineExceededError if the image is
        not decoded by the deadline, a time of the event loop.
        """
        arguments = (data, self._preprocessing, self._max_pixels)
        crop: Crop | None = None
        with _deadline_errors():
            async with asyncio.timeout_at(deadline):
                if data.startswith(JPEG_SIGNATURE):
                    crop = await self.threads.run(decode_jpeg, *arguments, lane=lane)
                if crop is None:
                    crop = await self._sandbox_threads.run(self._sandbox.decode, *arguments, lane=lane)
        return crop

    async def run(
        self,
        deadline: float | None,
        function: Callable[..., Value],
        *arguments: object,
        lane: Lane = Lane.INTERACTIVE,
    ) -> Value:
        """Call `function` in a decoding thread and return its result.

        Raises what `function` raises, and DeadlineExceededError if it has not returned by the deadline.
        """
        with _deadline_errors():
            async with asyncio.timeout_at(deadline):
                return await self.threads.run(function, *arguments, lane=lane)

    async def close(self, timeout_s: float) -> None:
        """Drop waiting images, wait up to `timeout_s` seconds for the others, and end the processes."""
        await asyncio.gather(self.threads.close(timeout_s), self._sandbox_threads.close(timeout_s))
        await asyncio.to_thread(self._sandbox.close)


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
    ) -> None:
        """Create a model that runs batches of at most `max_batch` images.

        `largest_batch` returns the size of the batches that are formed, which the warm-up determines.
        """
        self.model = model
        self._largest_batch = largest_batch
        self.placement = placement
        self.max_batch = max_batch
        self.decoder = decoder
        self._metrics = metrics

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
    ) -> TopKResult:
        """Classify one encoded image and return its `top_k` best classes, [top_k].

        `top_k` is from 1 to the number of classes, and `limits` those of a request with several images.
        Raises what `resnet_service.images.decode_image` and `Reservation.run` raise.
        """

        async def prepare() -> QueuedCrop:
            started = time.perf_counter()
            crop = await self.decoder.decode(data, reservation.deadline, reservation.lane)
            timing.record("decode", started, time.perf_counter())
            return QueuedCrop(crop, top_k)

        return await self._run(prepare, top_k, reservation, timing, limits)

    async def classify_crop(
        self,
        crop: Crop | Callable[[], Crop],
        top_k: int,
        reservation: ImageReservation,
        timing: RequestTiming,
        limits: ImageLimits | None = None,
    ) -> TopKResult:
        """Classify a crop, [S, S, 3] uint8; a function `crop` is called in a decoding thread to create it."""

        async def prepare() -> QueuedCrop:
            if not callable(crop):
                return QueuedCrop(crop, top_k)
            started = time.perf_counter()
            created = await self.decoder.run(reservation.deadline, crop, lane=reservation.lane)
            timing.record("decode", started, time.perf_counter())
            return QueuedCrop(created, top_k)

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
        timing.record("queue", output.enqueued_at, output.started_at)
        timing.record("device", output.started_at, output.finished_at)
        return result


@contextmanager
def _deadline_errors() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise DeadlineExceededError("deadline exceeded before inference started") from error
