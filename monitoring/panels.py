"""The panels of the Grafana dashboards: titles, descriptions and PromQL queries, as data.

`monitoring.dashboards` builds Grafana's JSON from them. Rates use `$__rate_interval`, which is at least four
scrape intervals of the data source, or series that `prometheus/rules.yml` records over 5 minutes.
"""

from typing import Final, NamedTuple

_NAMESPACES: Final = 'job=~"$job", namespace=~"$namespace"'
_VERSIONS: Final = 'model=~"$model", version=~"$version"'
SELECTED: Final = f'{_NAMESPACES}, pod=~"$pod", instance=~"$instance"'
"""Selects the instances that are chosen at the top of the dashboard."""
SELECTED_MODELS: Final = f"{SELECTED}, {_VERSIONS}"
"""Selects the versions of models that are chosen there, on these instances."""
RECORDED: Final = f"{_NAMESPACES}, {_VERSIONS}"
"""Selects the same among the recorded series of versions, which are sums over instances."""
VARIABLES: Final = {
    "job": "label_values(inference_ready, job)",
    "namespace": 'label_values(inference_ready{job=~"$job"}, namespace)',
    "pod": f"label_values(inference_ready{{{_NAMESPACES}}}, pod)",
    "instance": f'label_values(inference_ready{{{_NAMESPACES}, pod=~"$pod"}}, instance)',
    "model": f"label_values(inference_model_info{{{SELECTED}}}, model)",
    "version": f'label_values(inference_model_info{{{SELECTED}, model=~"$model"}}, version)',
}
"""The variables at the top of each dashboard, and the queries of their values."""
ANNOTATIONS: Final = {
    "Starts": f"changes(process_start_time_seconds{{{SELECTED}}}[$__rate_interval]) > 0",
    "Loads of models": "changes("
    f"inference_model_loaded_timestamp_seconds{{{SELECTED_MODELS}}}[$__rate_interval]) > 0",
}
"""Events that all graphs of a dashboard show, and their queries."""


def fill_in(expression: str, rate_interval: str) -> str:
    """Return a query with all variables replaced, as Grafana sends it if everything is selected."""
    for name in VARIABLES:
        expression = expression.replace(f"${name}", ".*")
    return expression.replace("$__rate_interval", rate_interval)


_PREDICTIONS: Final = f'{SELECTED}, route=~"/predict.*|/embed|/v2/.*/infer"'
_SUCCEEDED: Final = f'{_PREDICTIONS}, status="200"'


class Series(NamedTuple):
    """A PromQL query and the legend of its lines."""

    expr: str
    legend: str


class Panel(NamedTuple):
    """A panel of a dashboard.

    `unit` is Grafana's name of a unit, `limit` a threshold to draw, and `top` the maximum of the axis, which
    begins at 0 unless the values are signed.
    """

    title: str
    description: str
    unit: str
    series: tuple[Series, ...]
    limit: float | None = None
    top: float | None = None
    is_signed: bool = False


STAT_ROW: Final = "Status"
"""Title of the row whose panels show a single number."""

TIMELINE_ROW: Final = "Alerts"
"""Title of the row whose panels show when something held."""

YES_NO: Final = "bool_yes_no"
"""Unit of panels whose only number says whether something holds."""

HEATMAP_ROW: Final = "Model and device"
"""Title of the row that also shows the heatmap of batch sizes."""


def _rate(counter: str, selector: str = SELECTED) -> str:
    return f"rate({counter}{{{selector}}}[$__rate_interval])"


def _rate_by(label: str, counter: str, selector: str = SELECTED) -> Series:
    return Series(f"sum by ({label}) ({_rate(counter, selector)})", f"{{{{{label}}}}}")


def _mean(histogram: str, by: str = "") -> str:
    """Return the mean of a histogram of versions of models."""
    total, count = (_rate(f"{histogram}_{part}", SELECTED_MODELS) for part in ("sum", "count"))
    return f"sum{by}({total}) / sum{by}({count} > 0)"


def _quantile(quantile: float, histogram: str, labels: str = "le", selector: str = SELECTED) -> str:
    return f"histogram_quantile({quantile}, sum by ({labels}) ({_rate(f'{histogram}_bucket', selector)}))"


def _by_instance(metric: str, suffix: str = "") -> Series:
    return Series(f"{metric}{{{SELECTED}}}", f"{{{{instance}}}} {suffix}".rstrip())


def _utilization(busy_seconds: str, capacity: str, legend: str) -> Series:
    return Series(f"max({_rate(busy_seconds)} / {capacity}{{{SELECTED}}})", legend)


def _per_instance(record: str) -> str:
    return f"{record}{{{SELECTED}}}"


_VERSION: Final = "{{model}} {{version}}"


def _by_version(counter: str, selector: str = SELECTED_MODELS) -> Series:
    return Series(f"sum by (model, version) ({_rate(counter, selector)})", _VERSION)


def _shadow_images(outcomes: str) -> str:
    selector = f'{SELECTED_MODELS}, outcome=~"{outcomes}"'
    return f"sum by (model, version) ({_rate('inference_shadow_images_total', selector)})"


_REQUESTS: Final = "instance:inference_requests:rate5m"
_ERRORS: Final = "instance:inference_request_errors:rate5m"
_DEVICE: Final = Series(
    f"max(clamp_max(sum by (instance) ({_rate('inference_batch_seconds_sum')}) "
    f"/ max by (instance) (inference_device_streams{{{SELECTED}}}), 1))",
    "device",
)
_QUEUE: Final = Series(f"max({_per_instance('instance:inference_queue:ratio')})", "queue")

_STATS: Final = (
    Panel(
        "Ready",
        "Instances that accept images.",
        "short",
        (Series(f"sum(inference_ready{{{SELECTED}}})", "ready"),),
    ),
    Panel(
        "Predictions",
        "Requests per second to /predict, /predict/batch, /embed and /v2, and over gRPC, in 5 minutes.",
        "reqps",
        (Series(f"sum({_per_instance(_REQUESTS)})", "requests"),),
    ),
    Panel(
        "Errors",
        "Share of predictions that fail (5xx, and that over gRPC) in 5 minutes. The alert fires above 1 %.",
        "percentunit",
        (Series(f"sum({_per_instance(_ERRORS)}) / sum({_per_instance(_REQUESTS)} > 0)", "errors"),),
        limit=0.01,
    ),
    Panel(
        "p99",
        "p99 latency of the slowest instance over 5 minutes. The alert fires above 1 s.",
        "s",
        (Series(f"max({_per_instance('instance:inference_request_seconds:p99_5m')})", "p99"),),
        limit=1,
    ),
    Panel(
        "Queue",
        "Estimated wait at the fullest instance, in relation to its limit. At 1, requests are rejected.",
        "percentunit",
        (_QUEUE,),
        limit=0.8,
    ),
    Panel(
        "Device",
        "Utilization of the busiest device: share of the time in which it runs a batch.",
        "percentunit",
        (_DEVICE,),
        limit=0.95,
    ),
)

_OVERVIEW: Final[dict[str, tuple[Panel, ...]]] = {
    TIMELINE_ROW: (
        Panel(
            "Alerts that fire",
            "The text of an alert says what to check.",
            "short",
            (
                Series(
                    'max by (alertname, severity) (ALERTS{alertname=~"Inference.+", alertstate="firing"})',
                    "{{alertname}}, {{severity}}",
                ),
            ),
        ),
    ),
    "Health": (
        Panel(
            "Predictions by status",
            "429: overload. Other 4xx: client errors. 5xx: server errors. 499: the client disconnected.",
            "reqps",
            (_rate_by("status", "inference_request_seconds_count", _PREDICTIONS),),
        ),
        Panel(
            "Prediction latency",
            "Responses with status 200, from the request headers to the end of the response.",
            "s",
            tuple(
                Series(
                    f"max({_quantile(part / 100, 'inference_request_seconds', 'instance, le', _SUCCEEDED)})",
                    f"p{part}",
                )
                for part in (50, 95, 99)
            ),
            limit=1,
        ),
        Panel(
            "Errors",
            "Share of predictions that fail (5xx, and that over gRPC) in 5 minutes, by instance.",
            "percentunit",
            (_by_instance("instance:inference_request_errors:ratio_rate5m"),),
            limit=0.01,
        ),
        Panel(
            "gRPC calls by code",
            "RESOURCE_EXHAUSTED: overload. INTERNAL: server errors. CANCELLED: by the client.",
            "reqps",
            (_rate_by("code", "inference_grpc_request_seconds_count"),),
        ),
        Panel(
            "Rejected images",
            "queue_full, deadline: overload. memory: too many uploads. not_ready: start, drain or failure.",
            "ops",
            (_rate_by("reason", "inference_rejected_total"),),
        ),
    ),
    "Saturation": (
        Panel(
            "Utilization",
            "The resource at 1 is the bottleneck: the device or the decoding threads. They fill the queue.",
            "percentunit",
            (
                _DEVICE,
                _utilization(
                    "inference_decode_busy_seconds_total", "inference_decode_workers", "decoding threads"
                ),
                _QUEUE,
            ),
            top=1,
        ),
        Panel(
            "Waiting images",
            "Images that wait for the device or for decoding, all in progress, and requests before that.",
            "short",
            (
                Series(
                    f"sum by (priority) (inference_queue_depth{{{SELECTED}}})", "for the device, {{priority}}"
                ),
                Series(f"sum(inference_decode_waiting{{{SELECTED}}})", "for decoding"),
                Series(f"sum(inference_in_flight{{{SELECTED}}})", "all in progress"),
                Series(f"sum(inference_requests_waiting{{{SELECTED}}})", "not read yet"),
            ),
        ),
        Panel(
            "Batch size",
            "Mean number of images per device batch. It grows with the load.",
            "short",
            (Series(_mean("inference_batch_size"), "mean"),),
        ),
        Panel(
            "Images by outcome",
            "ok; invalid: client error; rejected: overload; failed; expired: deadline exceeded; cancelled.",
            "ops",
            (_rate_by("outcome", "inference_images_total"),),
        ),
    ),
}


_DETAIL: Final[dict[str, tuple[Panel, ...]]] = {
    "Stages": (
        Panel(
            "Stage durations, p99",
            "If the p99 latency rises, the stage that rises with it is the cause.",
            "s",
            (Series(_quantile(0.99, "inference_stage_seconds", "stage, le", SELECTED_MODELS), "{{stage}}"),),
        ),
        Panel(
            "Stage durations, median",
            "Median duration of each stage.",
            "s",
            (Series(_quantile(0.5, "inference_stage_seconds", "stage, le", SELECTED_MODELS), "{{stage}}"),),
        ),
        Panel(
            "Stage durations, mean",
            "Mean duration of each stage.",
            "s",
            (Series(_mean("inference_stage_seconds", " by (stage) "), "{{stage}}"),),
        ),
    ),
    HEATMAP_ROW: (
        Panel(
            "Batch duration",
            "Time of a batch on the device. A slower model or device is visible here first.",
            "s",
            tuple(
                Series(_quantile(part / 100, "inference_batch_seconds", selector=SELECTED_MODELS), f"p{part}")
                for part in (50, 99)
            ),
        ),
        Panel(
            "Batches per second",
            "By version of a model.",
            "ops",
            (_by_version("inference_batch_size_count"),),
        ),
        Panel(
            "Device memory",
            "Memory used by the process and total memory of the device; 0 on a CPU.",
            "bytes",
            (
                _by_instance("inference_device_memory_bytes", "{{device}}"),
                _by_instance("inference_device_memory_limit_bytes", "{{device}} limit"),
            ),
        ),
        Panel(
            "Model",
            "Version of a model, precision, device, runtime and service; a change starts a new line.",
            "short",
            (
                Series(
                    "sum by (model, version, device, precision, runtime, service_version) "
                    f"(inference_model_info{{{SELECTED_MODELS}}})",
                    "{{model}} {{version}}, {{precision}} on {{device}}, {{runtime}}, {{service_version}}",
                ),
            ),
        ),
    ),
    "Versions of models": (
        Panel(
            "Images by version",
            "Images that were classified; a canary gets its share of those of its model.",
            "ops",
            (_by_version("inference_images_total", f'{SELECTED_MODELS}, model!="", outcome="ok"'),),
        ),
        Panel(
            "Device time per image",
            "Duration of batches divided by their images. Larger batches take less time per image.",
            "s",
            (
                Series(
                    f"sum by (model, version) ({_rate('inference_batch_seconds_sum', SELECTED_MODELS)}) "
                    f"/ sum by (model, version) ({_rate('inference_batch_size_sum', SELECTED_MODELS)} > 0)",
                    _VERSION,
                ),
            ),
        ),
        Panel(
            "Agreement of the shadow",
            "Share of its images whose best class is that of the version that answered.",
            "percentunit",
            (Series(f"{_shadow_images('agree')} / ({_shadow_images('agree|disagree')} > 0)", _VERSION),),
            top=1,
        ),
        Panel(
            "Probability differences of the shadow",
            "Difference between the probabilities that both versions give the best class.",
            "percentunit",
            tuple(
                Series(
                    _quantile(
                        part / 100,
                        "inference_shadow_probability_difference",
                        "model, version, le",
                        SELECTED_MODELS,
                    ),
                    f"{_VERSION}, p{part}",
                )
                for part in (50, 99)
            ),
        ),
        Panel(
            "Shadow can take over",
            "Of at least 1,000 images in an hour, 99 % agreed and at most 0.1 % failed. Compare times, too.",
            YES_NO,
            (Series("version:inference_shadow_can_take_over:bool{" + RECORDED + "}", _VERSION),),
        ),
        Panel(
            "Shadow images by outcome",
            "dropped: the devices had no time for them. failed: an error of the shadow, which is in the log.",
            "ops",
            (_rate_by("outcome", "inference_shadow_images_total", SELECTED_MODELS),),
        ),
    ),
    "Process": (
        Panel(
            "CPU",
            "CPU cores in use.",
            "short",
            (Series(f"{_rate('process_cpu_seconds_total')}", "{{instance}}"),),
        ),
        Panel("Memory", "Resident memory.", "bytes", (_by_instance("process_resident_memory_bytes"),)),
        Panel(
            "Open files",
            "Open file descriptors, including connections, and their limit.",
            "short",
            (_by_instance("process_open_fds"), _by_instance("process_max_fds", "limit")),
        ),
    ),
    "Clients": (
        Panel("Connections", "Open, active or idle.", "short", (_by_instance("inference_connections"),)),
        Panel(
            "Rejected connections",
            "Connections that the server rejected or closed, by reason.",
            "ops",
            (_rate_by("reason", "inference_connections_rejected_total"),),
        ),
        Panel(
            "Uploads in memory",
            "Memory of request bodies that are being read, queued or processed.",
            "bytes",
            (_by_instance("inference_upload_bytes"),),
        ),
    ),
}

_SHARE: Final = f'version:inference_prediction_share:increase{{window="30m", {RECORDED}}}'
_BASELINE: Final = f"version:inference_baseline_share:max{{{RECORDED}}}"
_CLASS: Final = "{{model}} {{version}}, {{class}}"
_CLASS_RATE: Final = (
    f"sum by (model, version, class) ({_rate('inference_predictions_total', SELECTED_MODELS)})"
)

_PREDICTED: Final[dict[str, tuple[Panel, ...]]] = {
    "Classes": (
        Panel(
            "Change against the baseline",
            "Population stability index of the best classes in 4 and in 30 minutes. The alert fires above "
            "0.25. A window needs 400 images, and 20 for each class of the baseline.",
            "short",
            (Series(f"version:inference_prediction_shift:psi{{{RECORDED}}}", f"{_VERSION}, {{{{window}}}}"),),
            limit=0.25,
        ),
        Panel(
            "Classes that changed most",
            "Share of a class in 30 minutes, less its share in the baseline; negative: it became rarer.",
            "percentunit",
            tuple(
                Series(f"{rank}(5, {_SHARE} - ignoring (window) {_BASELINE})", _CLASS)
                for rank in ("topk", "bottomk")
            ),
            is_signed=True,
        ),
        Panel(
            "Most frequent classes",
            "Images per second by best class; _other: classes without a series of their own.",
            "ops",
            (Series(f"topk(10, {_CLASS_RATE})", _CLASS),),
        ),
    ),
    "Confidence": (
        Panel(
            "Probability of the best class",
            "Of all classified images: the lower quartile, the median and the upper quartile.",
            "percentunit",
            tuple(
                Series(
                    _quantile(
                        part / 100, "inference_prediction_probability", "model, version, le", SELECTED_MODELS
                    ),
                    f"{_VERSION}, p{part}",
                )
                for part in (25, 50, 75)
            ),
            top=1,
        ),
        Panel(
            "Entropy of the probabilities",
            "The median and the upper quartile; 100 %: all classes are equally probable. Images unlike those "
            "that the model was trained with often have a high entropy.",
            "percentunit",
            tuple(
                Series(
                    _quantile(
                        part / 100, "inference_prediction_entropy", "model, version, le", SELECTED_MODELS
                    ),
                    f"{_VERSION}, p{part}",
                )
                for part in (50, 75)
            ),
            top=1,
        ),
        Panel(
            "Mean probability and baseline",
            "Mean probability of the best class, and that of the baseline.",
            "percentunit",
            (
                Series(_mean("inference_prediction_probability", " by (model, version) "), _VERSION),
                Series(
                    f"max by (model, version) (inference_baseline_probability{{{SELECTED_MODELS}}})",
                    f"{_VERSION}, baseline",
                ),
            ),
            top=1,
        ),
    ),
    "Images": (
        Panel(
            "Images by format",
            "By the format of their first bytes. Formats other than JPEG take longer to decode.",
            "ops",
            (_rate_by("format", "inference_image_bytes_count"),),
        ),
        Panel(
            "Size of the images",
            "Encoded size.",
            "bytes",
            tuple(Series(_quantile(part / 100, "inference_image_bytes"), f"p{part}") for part in (5, 50)),
        ),
        Panel(
            "Shorter side of the images",
            "In pixels. Thumbnails have fewer details than the images that the model was trained with.",
            "short",
            tuple(
                Series(_quantile(part / 100, "inference_image_short_side_pixels"), f"p{part}")
                for part in (5, 50)
            ),
        ),
    ),
    "Log of predictions": (
        Panel(
            "Logged predictions",
            "Written to the prediction log, and dropped by reason. The alert fires for queue_full and "
            "write_failed.",
            "ops",
            (
                Series(f"sum({_rate('inference_prediction_log_rows_total')})", "written"),
                _rate_by("reason", "inference_prediction_log_dropped_total"),
            ),
        ),
        Panel(
            "Size of the prediction log",
            "Replicas with the same folder have the same size. At the maximum, the oldest files are deleted.",
            "bytes",
            (_by_instance("inference_prediction_log_bytes"),),
        ),
    ),
}

DASHBOARDS: Final = {
    "overview": ("resnet-service: overview", {STAT_ROW: _STATS, **_OVERVIEW}),
    "detail": ("resnet-service: detail", _DETAIL),
    "predictions": ("resnet-service: predictions", _PREDICTED),
}
"""File name -> dashboard title and panels by row title."""

BATCH_SIZES: Final = _rate_by("le", "inference_batch_size_bucket")
"""The query of the heatmap on the detail dashboard."""


def queries() -> list[tuple[str, Series]]:
    """Return every query of every dashboard, with the title of its panel."""
    panels = [panel for _, rows in DASHBOARDS.values() for row in rows.values() for panel in row]
    pairs = [(panel.title, series) for panel in panels for series in panel.series]
    return [*pairs, ("Batch sizes", BATCH_SIZES)]
