"""The Prometheus metrics of the prediction log; part of `metrics`."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from resnet_service.metric_labels import LOG_DELETION_REASONS, LOG_DROP_REASONS


class PredictionLogMetrics:
    """What is written to the prediction log, dropped, and deleted; all 0 without one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.rows = Counter(
            "inference_prediction_log_rows_total",
            "Predictions that were written to the prediction log.",
            registry=registry,
        )
        self.dropped = Counter(
            "inference_prediction_log_dropped_total",
            f"Predictions that were chosen but not written, by reason: {', '.join(LOG_DROP_REASONS)}.",
            ("reason",),
            registry=registry,
        )
        self.deleted = Counter(
            "inference_prediction_log_deleted_total",
            f"Files of the prediction log that were deleted, by reason: {', '.join(LOG_DELETION_REASONS)}.",
            ("reason",),
            registry=registry,
        )
        self.bytes = Gauge(
            "inference_prediction_log_bytes",
            "Size of the files of the prediction log, in bytes, when one was last written or deleted.",
            registry=registry,
            multiprocess_mode="livemax",  # all processes use the same folder
        )
        # rate() needs the 0 before the first increment.
        for labeled, values in ((self.dropped, LOG_DROP_REASONS), (self.deleted, LOG_DELETION_REASONS)):
            for value in values:
                labeled.labels(value)
