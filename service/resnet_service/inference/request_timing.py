"""The record of one request: when each stage began and ended, and the class of its error."""

import time
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from resnet_service.errors import ServiceError

Stage = Literal["wait", "read", "decode", "queue", "device"]
STAGES: Final[tuple[Stage, ...]] = ("wait", "read", "decode", "queue", "device")
"""The stages in order: waiting until earlier requests are finished (under overload), reading the body,
decoding (with the wait for a decoder), waiting for the device, and running the batch on it."""


class RequestTiming:
    """The stages of one request, or of one image of a request with several images.

    Lives from the end of the request headers to the end of the response. Response body, Server-Timing
    header, spans, access log and histograms are derived from it. All times are on `time.perf_counter`.

        timing = RequestTiming()
        timing.record("read", started, time.perf_counter())
        timing.seconds("read")
    """

    __slots__ = ("_images", "_stages", "error", "has_result", "rejection_reason", "started")

    def __init__(self, started: float | None = None) -> None:
        self.started = time.perf_counter() if started is None else started
        self.has_result = False
        self.error: type[BaseException] | None = None
        self.rejection_reason: str | None = None
        self._stages: dict[Stage, tuple[float, float]] = {}
        self._images: list[RequestTiming] = []

    def image(self) -> "RequestTiming":
        """Return a record for one image; what is recorded there is part of this request."""
        image = RequestTiming(self.started)
        self._images.append(image)
        return image

    @property
    def images(self) -> "Sequence[RequestTiming]":
        """The records of single images; none for a request with one image, or that ended before."""
        return self._images

    def fail(self, error: BaseException) -> None:
        """Record the class of an error, and why it is a rejection.

        Not the error itself, because its traceback refers to this record.
        """
        self.error = type(error)
        self.rejection_reason = error.reason if isinstance(error, ServiceError) else None

    def record(self, stage: Stage, started: float, ended: float) -> None:
        """Record the start and end of a stage."""
        self._stages[stage] = (started, ended)

    def seconds(self, stage: Stage) -> float:
        """Return the duration of a stage, 0 if it did not run.

        For a request with several images: from the start of the first image's stage to the end of the last.
        """
        interval = self._interval(stage)
        return 0.0 if interval is None else interval[1] - interval[0]

    @property
    def has_stages(self) -> bool:
        """Whether a stage was recorded, of the request or of one of its images."""
        return bool(self._stages or any(image._stages for image in self._images))

    @property
    def total_s(self) -> float:
        """Seconds since the end of the request headers."""
        return time.perf_counter() - self.started

    def intervals(self) -> Iterator[tuple[Stage, float, float]]:
        """Yield the start and end of each stage that ran, over all images, in the order of the stages."""
        for stage in STAGES:
            interval = self._interval(stage)
            if interval is not None:
                yield stage, *interval

    def observations(self) -> Iterator[tuple[Stage, float]]:
        """Yield each stage of the request and of each of its images with its duration in seconds."""
        for record in (self, *self._images):
            for stage, (started, ended) in record._stages.items():
                yield stage, ended - started

    def server_timing(self) -> str:
        """Return the value of a Server-Timing header: the stages and the total, in milliseconds."""
        entries = [f"{stage};dur={(ended - started) * 1e3:.2f}" for stage, started, ended in self.intervals()]
        return ", ".join([*entries, f"total;dur={self.total_s * 1e3:.2f}"])

    def _interval(self, stage: Stage) -> tuple[float, float] | None:
        if not self._images:
            return self._stages.get(stage)
        intervals = [record._stages[stage] for record in (self, *self._images) if stage in record._stages]
        if not intervals:
            return None
        return min(started for started, _ in intervals), max(ended for _, ended in intervals)
