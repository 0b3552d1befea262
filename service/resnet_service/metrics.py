"""All Prometheus metrics of the service, on a separate registry.

Dashboards and alerts depend on the names. Units are base units: seconds and bytes.
"""

from collections import defaultdict
from functools import partial
from typing import Final, get_args

from prometheus_client import Counter, Gauge, Histogram

from resnet_service.metric_labels import (
    CONNECTION_REASONS,
    DECODE_POOLS,
    IMAGE_OUTCOMES,
    MODEL,
    REJECTION_REASONS,
    RESTART_REASONS,
    SHADOW_OUTCOMES,
    STAGES,
)
from resnet_service.metric_registry import MetricRegistry, unbind
from resnet_service.prediction_log_metrics import PredictionLogMetrics
from resnet_service.schemas import Priority

# From the decoding of a thumbnail (1 ms) to the default deadline (30 s).
_DURATION_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCH_SIZE_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_PROBABILITY_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5)
_BEST_PROBABILITY_BUCKETS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_ENTROPY_BUCKETS: Final = (0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_SHORT_SIDE_BUCKETS: Final = (32, 64, 128, 224, 256, 384, 512, 768, 1024, 2048, 4096)
_IMAGE_BYTES_BUCKETS: Final = (1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7, 3e7)


class Metrics(MetricRegistry):
    """The metrics of one application. A process has one instance per application that it serves."""

    def __init__(self, *, in_worker: bool = False) -> None:
        super().__init__(in_worker=in_worker)
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry, multiprocess_mode="livesum")
        histogram = partial(Histogram, registry=self.registry)

        self.request_seconds = histogram(
            "inference_request_seconds",
            "Duration of requests, from the request headers to the end of the response.",
            ("route", "method", "status"),
            buckets=_DURATION_BUCKETS_S,
        )
        self.grpc_request_seconds = histogram(
            "inference_grpc_request_seconds",
            "Duration of gRPC calls, from their start to the response; those that stay open are not counted.",
            ("method", "code"),
            buckets=_DURATION_BUCKETS_S,
        )
        self.stage_seconds = histogram(
            "inference_stage_seconds",
            "Duration of a stage: `wait` (under overload) and `read` per request; `decode`, `queue` and "
            "`device` per image.",
            (*MODEL, "stage"),
            buckets=_DURATION_BUCKETS_S,
        )
        self.batch_size = histogram(
            "inference_batch_size", "Images per device batch.", MODEL, buckets=_BATCH_SIZE_BUCKETS
        )
        self.largest_batch = gauge(
            "inference_largest_batch",
            "Batch size limit: `max_batch`, or what fits the device if that is less.",
            MODEL,
        )
        self.batch_seconds = histogram(
            "inference_batch_seconds",
            "Duration of device batches, including failed ones. `rate(_sum)` is the average number "
            "of busy streams.",
            MODEL,
            buckets=_DURATION_BUCKETS_S,
        )
        self.device_streams = gauge(
            "inference_device_streams", "Batches that can run at the same time.", MODEL
        )
        self.queue_depth = gauge(
            "inference_queue_depth", "Images that wait for a device.", (*MODEL, "priority")
        )
        self.requests_waiting = gauge(
            "inference_requests_waiting",
            "Admitted requests that are not read yet, because of the limit on concurrent ones.",
            MODEL,
        )
        self.queue_wait = gauge(
            "inference_queue_wait_seconds",
            "Estimated time until a request that arrives now is finished.",
            (*MODEL, "priority"),
        )
        self.queue_wait_limit = gauge(
            "inference_queue_wait_limit_seconds", "Limit of that time; more requests are rejected.", MODEL
        )
        self.decode_workers = gauge(
            "inference_decode_workers",
            "Images that can be decoded at the same time.",
            ("pool",),
        )
        self.decode_busy_seconds = counter(
            "inference_decode_busy_seconds_total",
            "Time that decoding took; its rate divided by the workers is the utilization.",
            ("pool",),
        )
        self.sandbox_restarts = counter(
            "inference_sandbox_restarts_total",
            "Processes that ended or were ended while decoding images other than JPEG, by reason: "
            f"{', '.join(RESTART_REASONS)}.",
            ("reason",),
        )
        self.worker_restarts = counter(
            "inference_worker_restarts_total", "HTTP workers that ended and were replaced."
        )
        self.abandoned_requests = counter(
            "inference_abandoned_requests_total", "Requests of HTTP workers that ended before the response."
        )
        self.decode_waiting = gauge("inference_decode_waiting", "Images that wait to be decoded.")
        self.in_flight = gauge("inference_in_flight", "Images accepted and not finished.")
        self.images = counter(
            "inference_images_total",
            f"Images by outcome: {', '.join(IMAGE_OUTCOMES)}. A request that fails before its images are "
            "known counts as one.",
            (*MODEL, "outcome"),
        )
        self.rejected = counter(
            "inference_rejected_total",
            f"Images rejected (429 or 503), by reason: {', '.join(REJECTION_REASONS)}.",
            (*MODEL, "reason"),
        )
        self.predictions = counter(
            "inference_predictions_total",
            "Classified images by their best class; at most `prediction_classes` classes have a series.",
            (*MODEL, "class"),
        )
        self.predicted_classes: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        """The classes with a series, by model and version: a load of a version does not remove them."""
        self.prediction_probability = histogram(
            "inference_prediction_probability",
            "Probability of the best class of each classified image.",
            MODEL,
            buckets=_BEST_PROBABILITY_BUCKETS,
        )
        self.prediction_entropy = histogram(
            "inference_prediction_entropy",
            "Entropy of the probabilities of a classified image, relative to its maximum: 0 if one class is "
            "certain, 1 if all are equally probable.",
            MODEL,
            buckets=_ENTROPY_BUCKETS,
        )
        self.baseline_share = gauge(
            "inference_baseline_share",
            "Share of the images with this best class in the baseline, 0 to 1.",
            (*MODEL, "class"),
        )
        self.baseline_probability = gauge(
            "inference_baseline_probability", "Mean probability of the best class in the baseline.", MODEL
        )
        self.prediction_log = PredictionLogMetrics(self.registry)
        self.image_bytes = histogram(
            "inference_image_bytes",
            "Size of the encoded images, in bytes; `_count` is their number by format.",
            ("format",),
            buckets=_IMAGE_BYTES_BUCKETS,
        )
        self.image_short_side = histogram(
            "inference_image_short_side_pixels",
            "Shorter side of the decoded images, in pixels. A model sees an image enlarged whose side is "
            "shorter than its input.",
            buckets=_SHORT_SIDE_BUCKETS,
        )
        self.shadow_images = counter(
            "inference_shadow_images_total",
            f"Images that a shadow version has run, by outcome: {', '.join(SHADOW_OUTCOMES)}. "
            "`agree`: its best class is that of the version whose result the client got.",
            (*MODEL, "outcome"),
        )
        self.shadow_difference = histogram(
            "inference_shadow_probability_difference",
            "Difference between the probabilities that both versions give the best class of that result.",
            MODEL,
            buckets=_PROBABILITY_BUCKETS,
        )
        self.connections = gauge("inference_connections", "Open client connections.")
        self.connections_rejected = counter(
            "inference_connections_rejected_total",
            f"Connections rejected or closed by the server, by reason: {', '.join(CONNECTION_REASONS)}.",
            ("reason",),
        )
        self.upload_bytes = gauge("inference_upload_bytes", "Memory used by uploads, in bytes.")
        self.ready = gauge("inference_ready", "1 while /readyz responds with 200, otherwise 0.")
        self.model_info = gauge(
            "inference_model_info",
            "Always 1; the labels describe a version of a model in use.",
            (*MODEL, "device", "precision", "runtime", "service_version"),
        )
        self.model_loaded = gauge(
            "inference_model_loaded_timestamp_seconds",
            "When a version of a model was loaded, in seconds since 1970.",
            MODEL,
        )
        self.device_memory = gauge(
            "inference_device_memory_bytes",
            "Device memory in use, in bytes; 0 on the CPU, which shares the host memory.",
            ("device",),
        )
        self.device_memory_limit = gauge(
            "inference_device_memory_limit_bytes", "Total device memory, in bytes; 0 on the CPU.", ("device",)
        )
        self.log_lines_dropped = counter(
            "inference_log_lines_dropped_total", "Log lines that could not be written to standard error."
        )
        # rate() needs the 0 before the first increment, so every labeled counter is created here.
        for labeled, values in (
            (self.decode_busy_seconds, DECODE_POOLS),
            (self.sandbox_restarts, RESTART_REASONS),
            (self.connections_rejected, CONNECTION_REASONS),
        ):
            for value in values:
                labeled.labels(value)
        self.add_model("", "")

    def add_model(self, model: str, version: str) -> None:
        """Create the counters of a version of a model; its first requests may be the first to count."""
        for outcome in IMAGE_OUTCOMES:
            self.images.labels(model, version, outcome)
        for reason in REJECTION_REASONS:
            self.rejected.labels(model, version, reason)
        for stage in STAGES:
            self.stage_seconds.labels(model, version, stage)

    def remove_model(self, model: str, version: str) -> None:
        """Remove the gauges of a version that was unloaded; its counters and histograms stay."""
        for gauge in (self.largest_batch, self.requests_waiting):
            unbind(gauge.labels(model, version))
        for gauge in (self.queue_depth, self.queue_wait):
            for priority in get_args(Priority):
                unbind(gauge.labels(model, version, priority))
        for gauge in (
            self.largest_batch,
            self.device_streams,
            self.queue_depth,
            self.requests_waiting,
            self.queue_wait,
            self.queue_wait_limit,
            self.model_info,
            self.model_loaded,
        ):
            gauge.remove_by_labels({"model": model, "version": version})
        self.remove_baseline(model, version)

    def remove_baseline(self, model: str, version: str) -> None:
        """Remove the gauges of the baseline of a version."""
        for gauge in (self.baseline_share, self.baseline_probability):
            gauge.remove_by_labels({"model": model, "version": version})

    def remove_device(self, device: str) -> None:
        """Remove the gauges of a device that no model uses any more."""
        for gauge in (self.device_memory, self.device_memory_limit):
            unbind(gauge.labels(device))
            gauge.remove(device)
