"""Every Prometheus metric of the service, on a registry of its own.

Names are a contract with dashboards and alerts. Base units: seconds and bytes.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from resnet_service.errors import (
    DeadlineExceededError,
    InvalidImageError,
    OverloadedError,
    PayloadTooLarge,
    ServiceError,
    ServiceUnavailable,
    UnsupportedMediaType,
)

# From a decoded thumbnail (1 ms) to the default deadline (30 s).
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_OUTCOMES: Final[dict[type[ServiceError], str]] = {
    InvalidImageError: "invalid",
    UnsupportedMediaType: "invalid",
    PayloadTooLarge: "invalid",
    OverloadedError: "rejected",
    ServiceUnavailable: "rejected",
    DeadlineExceededError: "expired",
}
_IMAGES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """One set of metrics; a process has one for each application it serves."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second series for each one, of no use to anyone here
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)

        self.request_seconds = histogram(
            "inference_request_seconds",
            "Time from a request's head to the end of its answer.",
            ("route", "method", "status"),
            buckets=_SECONDS,
        )
        self.stage_seconds = histogram(
            "inference_stage_seconds",
            "Time of one stage: read (of a request), decode, queue, device (of an image).",
            ("stage",),
            buckets=_SECONDS,
        )
        self.batch_size = histogram("inference_batch_size", "Images in a device batch.", buckets=_IMAGES)
        self.largest_batch = gauge(
            "inference_largest_batch",
            "Images in the largest batch formed: more do not fit, or are no faster an image.",
        )
        self.batch_seconds = histogram(
            "inference_batch_seconds",
            "Time of a device batch, those that failed included; its sum's rate is the busy instances.",
            buckets=_SECONDS,
        )
        self.device_streams = gauge("inference_device_streams", "Batches that run at a time, at most.")
        self.queue_depth = gauge("inference_queue_depth", "Images that wait for the device.")
        self.queue_limit = gauge("inference_queue_limit", "Images that may wait; more are rejected.")
        self.decode_threads = gauge("inference_decode_threads", "WorkerPool that decode images.")
        self.decode_running = gauge("inference_decode_running", "Images being decoded.")
        self.decode_waiting = gauge("inference_decode_waiting", "Images that wait for a decoding thread.")
        self.in_flight = gauge("inference_in_flight", "Images accepted and not yet answered.")
        self.images = counter(
            "inference_images_total",
            "Images by outcome: ok, invalid, rejected, failed, expired, cancelled.",
            ("outcome",),
        )
        for outcome in ("ok", "invalid", "rejected", "failed", "expired", "cancelled"):
            self.images.labels(outcome)
        self.rejected = counter(
            "inference_rejected_total",
            "Images rejected before any work: queue_full, deadline, memory, not_ready.",
            ("reason",),
        )
        for reason in ("queue_full", "deadline", "memory", "not_ready"):
            self.rejected.labels(reason)  # a rate needs the 0 before the first one
        self.connections = gauge("inference_connections", "Open connections of clients.")
        self.connections_rejected = counter(
            "inference_connections_rejected_total",
            "Connections cut off: limit, header_timeout, header_too_large, malformed, pipelined, write_timeout.",
            ("reason",),
        )
        for reason in (
            "limit",
            "header_timeout",
            "header_too_large",
            "malformed",
            "pipelined",
            "write_timeout",
        ):
            self.connections_rejected.labels(reason)
        self.upload_bytes = gauge("inference_upload_bytes", "Bytes of uploads held in memory.")
        self.ready = gauge("inference_ready", "1 while /readyz says yes.")
        self.model_info = gauge(
            "inference_model_info",
            "1, with what is served as labels.",
            ("model", "device", "precision", "runtime", "version"),
        )
        self.device_memory = gauge(
            "inference_device_memory_bytes",
            "Bytes held on the device; 0 on the CPU, which has no own.",
            ("device",),
        )
        self.device_memory_limit = gauge(
            "inference_device_memory_limit_bytes", "Bytes the device has; 0 on the CPU.", ("device",)
        )

    @contextmanager
    def outcome(self) -> Iterator[None]:
        """Count an image by how the block ends."""
        outcome = "failed"
        try:
            yield
            outcome = "ok"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except ServiceError as error:
            outcome = _OUTCOMES.get(type(error), "failed")
            if isinstance(error, OverloadedError):
                self.rejected.labels(error.reason).inc()
            elif isinstance(error, ServiceUnavailable):
                self.rejected.labels("not_ready").inc()
            raise
        finally:
            self.images.labels(outcome).inc()
