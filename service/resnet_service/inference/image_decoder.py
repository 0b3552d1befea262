"""Decode images to crops: plain JPEG in threads, all other images in the sandbox."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from resnet_service.batching import Lane
from resnet_service.errors import DeadlineExceededError
from resnet_service.images import (
    JPEG_SIGNATURE,
    Crop,
    DecodedImage,
    Preprocessing,
    Sandbox,
    decode_jpeg,
    format_name,
)
from resnet_service.inference.worker_pool import WorkerPool
from resnet_service.machine import available_cpus
from resnet_service.metrics import Metrics

Value = TypeVar("Value")


class ImageDecoder:
    """Decodes images to the crops that models take, on one event loop, until `close`; all models share it.

    decoder = ImageDecoder(50_000_000, Metrics(), sandbox=Sandbox(2))
    crop = await decoder.decode(data, model.preprocessing, deadline=None)
    """

    def __init__(
        self,
        max_pixels: int,
        metrics: Metrics,
        *,
        threads: int | None = None,
        sandbox: Sandbox | None = None,
    ) -> None:
        """Create the pools; threads start with `start`, and processes as they are needed.

        `threads` is by default one per CPU core, `sandbox` one with the default limits.
        """
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

    def start(self) -> None:
        """Start the threads, and make the gauges report this decoder.

        Raises RuntimeError if the system allows too few threads.
        """
        self.threads.start()
        self._sandbox_threads.start()
        self._metrics.decode_workers.labels("threads").set(self.threads.count)
        self._metrics.decode_workers.labels("sandbox").set(self._sandbox_threads.count)
        self._metrics.report(
            self._metrics.decode_waiting, lambda: self.threads.waiting + self._sandbox_threads.waiting
        )

    async def decode(
        self,
        data: bytes | bytearray,
        preprocessing: Preprocessing,
        deadline: float | None,
        lane: Lane = Lane.INTERACTIVE,
    ) -> Crop:
        """Decode an encoded image; interactive ones go first.

        Raises what `resnet_service.images.decode_image` raises, and DeadlineExceededError if the image is
        not decoded by the deadline, a time of the event loop.
        """
        arguments = (data, preprocessing, self._max_pixels)
        self._metrics.image_bytes.labels(format_name(data)).observe(len(data))
        decoded: DecodedImage | None = None
        with _deadline_errors():
            async with asyncio.timeout_at(deadline):
                if data.startswith(JPEG_SIGNATURE):
                    decoded = await self.threads.run(decode_jpeg, *arguments, lane=lane)
                if decoded is None:
                    decoded = await self._sandbox_threads.run(self._sandbox.decode, *arguments, lane=lane)
        self._metrics.image_short_side.observe(min(decoded.width, decoded.height))
        return decoded.crop

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


@contextmanager
def _deadline_errors() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise DeadlineExceededError("deadline exceeded before inference started") from error
