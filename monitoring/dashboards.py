"""Grafana's two dashboards, as code; `python -m monitoring.dashboards` writes their JSON.

The overview is for whoever is on call: is it well, and if not, what is it short of. The detail says where the
time goes.
"""

from pathlib import Path
from string import ascii_uppercase
from typing import Any, Final, NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import GraphThresholdsStyleMode, TimeZoneBrowser
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER: Final = Path(__file__).parent / "grafana" / "dashboards"
SOURCE: Final = DataSourceRef(type_val="prometheus", uid="prometheus")
HERE: Final = 'job="resnet-service", instance=~"$instance"'
"""Selects the instances chosen on top of the dashboard."""


_PREDICTIONS: Final = f'{HERE}, route=~"/predict.*|/v2/.*/infer"'


class Series(NamedTuple):
    """A query in PromQL and the name of what it draws."""

    expr: str
    legend: str


class Panel(NamedTuple):
    """A drawing: `unit` is Grafana's name; `limit` draws a line, `top` fixes the upper end of the axis."""

    title: str
    description: str
    unit: str
    series: tuple[Series, ...]
    limit: float | None = None
    top: float | None = None


def _rate(counter: str, selector: str = HERE) -> str:
    return f"rate({counter}{{{selector}}}[$__rate_interval])"


def _per_instance(record: str) -> str:
    return f"{record}{{{HERE}}}"


_STATS: Final = (
    Panel(
        "Ready",
        "Instances that accept images.",
        "short",
        (Series(f"sum(inference_ready{{{HERE}}})", "ready"),),
    ),
    Panel(
        "Predictions",
        "Requests to /predict, /predict/batch and /v2.",
        "reqps",
        (Series(f"sum({_per_instance('instance:inference_requests:rate1m')})", "requests"),),
    ),
    Panel(
        "Errors",
        "Share of predictions answered with 5xx; the alert fires above 1 %.",
        "percentunit",
        (
            Series(
                f"sum({_per_instance('instance:inference_request_errors:rate1m')})"
                f" / sum({_per_instance('instance:inference_requests:rate1m')} > 0)",
                "errors",
            ),
        ),
        limit=0.01,
    ),
    Panel(
        "p99",
        "Slowest instance; the alert fires above 1 s.",
        "s",
        (Series(f"max({_per_instance('instance:inference_request_seconds:p99_1m')})", "p99"),),
        limit=1,
    ),
    Panel(
        "Queue",
        "Fullest queue; beyond its limit images are rejected.",
        "percentunit",
        (Series(f"max({_per_instance('instance:inference_queue:ratio')})", "queue"),),
        limit=0.8,
    ),
    Panel(
        "Device",
        "Busiest device: share of the time with a batch on it.",
        "percentunit",
        (Series(f"max({_per_instance('instance:inference_device:utilization_rate1m')})", "device"),),
        limit=0.95,
    ),
)

_OVERVIEW: Final = {
    "Is it well?": (
        Panel(
            "Predictions by status",
            "429 is overload, 4xx a caller's mistake, 5xx ours, 499 a caller who hung up.",
            "reqps",
            (
                Series(
                    f"sum by (status) ({_rate('inference_request_seconds_count', _PREDICTIONS)})",
                    "{{status}}",
                ),
            ),
        ),
        Panel(
            "Latency of predictions",
            "Of answers with status 200, from the request's head to the answer's end.",
            "s",
            tuple(
                Series(f"max({_per_instance(f'instance:inference_request_seconds:p{part}_1m')})", f"p{part}")
                for part in (50, 95, 99)
            ),
            limit=1,
        ),
        Panel(
            "Errors",
            "Share of predictions answered with 5xx, by instance.",
            "percentunit",
            (Series(_per_instance("instance:inference_request_errors:ratio_rate1m"), "{{instance}}"),),
            limit=0.01,
        ),
        Panel(
            "APIError images",
            "queue_full and deadline are overload, not_ready is a drain or a failed device.",
            "ops",
            (
                Series(
                    f"sum by (reason) ({_rate('inference_rejected_total')})",
                    "{{reason}}",
                ),
            ),
        ),
    ),
    "What is it short of?": (
        Panel(
            "Saturation",
            "What is at 1 is the bottleneck: the device, the decoding threads, or a queue filled by them.",
            "percentunit",
            (
                Series(f"max({_per_instance('instance:inference_device:utilization_rate1m')})", "device"),
                Series(f"max({_per_instance('instance:inference_decode:utilization')})", "decoding threads"),
                Series(f"max({_per_instance('instance:inference_queue:ratio')})", "queue"),
            ),
            top=1,
        ),
        Panel(
            "Images that wait",
            "For the device, and for a thread that decodes.",
            "short",
            (
                Series(f"sum(inference_queue_depth{{{HERE}}})", "for the device"),
                Series(f"sum(inference_decode_waiting{{{HERE}}})", "for decoding"),
                Series(f"sum(inference_in_flight{{{HERE}}})", "accepted in all"),
            ),
        ),
        Panel(
            "Images in a batch",
            "Mean size of a device batch; it grows with the load.",
            "short",
            (
                Series(
                    f"sum({_rate('inference_batch_size_sum')})"
                    f" / sum({_rate('inference_batch_size_count')} > 0)",
                    "mean",
                ),
            ),
        ),
        Panel(
            "Images by outcome",
            "ok, invalid (a caller's mistake), rejected, failed, expired, cancelled.",
            "ops",
            (
                Series(
                    f"sum by (outcome) ({_rate('inference_images_total')})",
                    "{{outcome}}",
                ),
            ),
        ),
    ),
}


def _stage(quantile: float) -> str:
    return f"histogram_quantile({quantile}, sum by (stage, le) ({_rate('inference_stage_seconds_bucket')}))"


_DETAIL: Final = {
    "Stages of an image": (
        Panel(
            "Stages, p99",
            "Where the time of the slowest goes: the stage that rises with p99 is the cause.",
            "s",
            (Series(_stage(0.99), "{{stage}}"),),
        ),
        Panel("Stages, median", "The same for the usual image.", "s", (Series(_stage(0.5), "{{stage}}"),)),
        Panel(
            "Stages, mean, stacked",
            "Mean seconds of each stage.",
            "s",
            (
                Series(
                    f"sum by (stage) ({_rate('inference_stage_seconds_sum')})"
                    f" / sum by (stage) ({_rate('inference_stage_seconds_count')} > 0)",
                    "{{stage}}",
                ),
            ),
        ),
    ),
    "Model and device": (
        Panel(
            "Duration of a batch",
            "On the device; a slower model or device shows here first.",
            "s",
            tuple(
                Series(
                    f"histogram_quantile({part / 100}, sum by (le) "
                    f"({_rate('inference_batch_seconds_bucket')}))",
                    f"p{part}",
                )
                for part in (50, 99)
            ),
        ),
        Panel(
            "Batches a second",
            "By instance.",
            "ops",
            (Series(f"{_rate('inference_batch_size_count')}", "{{instance}}"),),
        ),
        Panel(
            "Device memory",
            "Held by the process, and what the device has; 0 on a CPU.",
            "bytes",
            (
                Series(f"inference_device_memory_bytes{{{HERE}}}", "{{instance}} {{device}}"),
                Series(f"inference_device_memory_limit_bytes{{{HERE}}}", "{{instance}} {{device}} limit"),
            ),
        ),
        Panel(
            "What is served",
            "A change of version, model or precision is a change of color.",
            "short",
            (
                Series(
                    f"sum by (model, device, precision, runtime, version) (inference_model_info{{{HERE}}})",
                    "{{model}} {{precision}} on {{device}}, {{runtime}}, {{version}}",
                ),
            ),
        ),
    ),
    "Process": (
        Panel(
            "CPU",
            "Cores in use.",
            "short",
            (Series(f"{_rate('process_cpu_seconds_total')}", "{{instance}}"),),
        ),
        Panel(
            "Memory",
            "Resident.",
            "bytes",
            (Series(f"process_resident_memory_bytes{{{HERE}}}", "{{instance}}"),),
        ),
        Panel(
            "Open files",
            "Connections included, and how many there may be.",
            "short",
            (
                Series(f"process_open_fds{{{HERE}}}", "{{instance}}"),
                Series(f"process_max_fds{{{HERE}}}", "{{instance}} limit"),
            ),
        ),
    ),
    "Clients": (
        Panel(
            "Connections",
            "Open ones, at work or idle.",
            "short",
            (Series(f"inference_connections{{{HERE}}}", "{{instance}}"),),
        ),
        Panel(
            "Connections cut off",
            "By reason: too many, late or huge heads, no HTTP, endless pipelining, answers not read.",
            "ops",
            (
                Series(
                    f"sum by (reason) ({_rate('inference_connections_rejected_total')})",
                    "{{reason}}",
                ),
            ),
        ),
        Panel(
            "Uploads in memory",
            "Bytes of requests that are read, queued or run.",
            "bytes",
            (Series(f"inference_upload_bytes{{{HERE}}}", "{{instance}}"),),
        ),
    ),
}

DASHBOARDS: Final = {
    "overview": ("resnet-service: overview", {"Now": _STATS, **_OVERVIEW}),
    "detail": ("resnet-service: detail", _DETAIL),
}
"""File name -> title and panels by row."""

BATCH_SIZES: Final = Series(f"sum by (le) ({_rate('inference_batch_size_bucket')})", "{{le}}")
"""The detail dashboard's heatmap."""


def queries() -> list[tuple[str, Series]]:
    """Return every query of every dashboard with the title of its panel."""
    panels = [panel for _, rows in DASHBOARDS.values() for row in rows.values() for panel in row]
    found = [(panel.title, series) for panel in panels for series in panel.series]
    return [*found, ("Batch sizes", BATCH_SIZES)]


def _target(series: Series, letter: str = "A") -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(series.expr).legend_format(series.legend).ref_id(letter)


def _thresholds(limit: float) -> dashboard.ThresholdsConfig:
    steps = [Threshold(color="green", value=None), Threshold(color="red", value=limit)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _stat(panel: Panel) -> stat.Panel:
    built = stat.Panel().title(panel.title).description(panel.description).unit(panel.unit)
    built = built.datasource(SOURCE).height(4).span(4)
    for series, letter in zip(panel.series, ascii_uppercase, strict=False):
        built = built.with_target(_target(series, letter))
    return built if panel.limit is None else built.thresholds(_thresholds(panel.limit))


def _graph(panel: Panel) -> timeseries.Panel:
    built = timeseries.Panel().title(panel.title).description(panel.description).unit(panel.unit)
    built = built.datasource(SOURCE).height(8).span(12).min(0).fill_opacity(10)
    if panel.top is not None:
        built = built.max(panel.top)
    if panel.limit is not None:
        built = built.thresholds(_thresholds(panel.limit))
        built = built.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
        )
    for series, letter in zip(panel.series, ascii_uppercase, strict=False):
        built = built.with_target(_target(series, letter))
    return built


def _batch_sizes() -> heatmap.Panel:
    return (
        heatmap.Panel()
        .title("Batch sizes")
        .description("How many batches of which size.")
        .datasource(SOURCE)
        .height(8)
        .span(12)
        .with_target(_target(BATCH_SIZES).format(PromQueryFormat.HEATMAP))
    )


def build(name: str) -> Any:
    """Build the dashboard called `name`, a key of DASHBOARDS."""
    title, rows = DASHBOARDS[name]
    instances = dashboard.QueryVariable("instance").label("Instance").datasource(SOURCE)
    instances = (
        instances.query('label_values(up{job="resnet-service"}, instance)').include_all(True).multi(True)
    )
    built = (
        dashboard.Dashboard(title)
        .uid(f"resnet-service-{name}")
        .tags(["resnet-service"])
        .refresh("10s")
        .time("now-30m", "now")
        .timezone(TimeZoneBrowser)
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(instances)
        .link(dashboard.DashboardLink("The other dashboard").tags(["resnet-service"]).as_dropdown(False))
    )
    for row, panels in rows.items():
        built = built.with_row(dashboard.Row(row))
        for panel in panels:
            built = built.with_panel(_stat(panel) if row == "Now" else _graph(panel))
        if row == "Model and device":
            built = built.with_panel(_batch_sizes())
    whole = built.build()
    for number, placed in enumerate(whole.panels or [], 1):
        placed.id_val = number  # what links and alerts refer to
    return whole


def written(name: str) -> str:
    """Return the dashboard as the JSON that Grafana reads."""
    return JSONEncoder(sort_keys=True, indent=2).encode(build(name)) + "\n"


if __name__ == "__main__":
    for key in DASHBOARDS:
        (FOLDER / f"{key}.json").write_text(written(key), encoding="utf-8")
