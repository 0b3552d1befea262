"""Build the Grafana dashboards; `python -m monitoring.dashboards` writes their JSON files.

The overview shows whether the service is healthy and which resource is saturated; the detail dashboard shows
where the time is spent; the third one shows what is predicted. `monitoring.panels` defines their content.
"""

from pathlib import Path
from string import ascii_uppercase
from typing import Any, Final

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import GraphThresholdsStyleMode, TimeZoneBrowser, VisibilityMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from monitoring.panels import (
    ANNOTATIONS,
    BATCH_SIZES,
    DASHBOARDS,
    HEATMAP_ROW,
    STAT_ROW,
    TIMELINE_ROW,
    VARIABLES,
    YES_NO,
    Panel,
    Series,
)

FOLDER: Final = Path(__file__).parent / "grafana" / "dashboards"
_DATA_SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
"""The one that is chosen at the top of the dashboard."""
_ANYTHING: Final = ".*"
"""Also matches a label that the series do not have, such as `pod` outside of Kubernetes."""


def build_dashboard(name: str) -> Any:
    """Build the dashboard `name`, a key of DASHBOARDS, as an object of Grafana's SDK."""
    title, rows = DASHBOARDS[name]
    built = (
        dashboard.Dashboard(title)
        .uid(f"resnet-service-{name}")
        .tags(["resnet-service"])
        .refresh("10s")
        .time("now-30m", "now")
        .timezone(TimeZoneBrowser)
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .link(dashboard.DashboardLink("Other dashboard").tags(["resnet-service"]).as_dropdown(False))
    )
    for variable, query in VARIABLES.items():
        built = built.with_variable(
            dashboard.QueryVariable(variable)
            .label(variable.capitalize())
            .datasource(_DATA_SOURCE)
            .query(query)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .include_all(True)
            .all_value(_ANYTHING)
            .multi(True)
        )
    for event, query in ANNOTATIONS.items():
        built = built.annotation(
            dashboard.AnnotationQuery()
            .name(event)
            .datasource(_DATA_SOURCE)
            .expr(query)
            .enable(True)
            .icon_color("blue")
        )
    for row, panels in rows.items():
        built = built.with_row(dashboard.Row(row))
        for panel in panels:
            if row == TIMELINE_ROW:
                built = built.with_panel(_timeline(panel))
            elif row == STAT_ROW or panel.unit == YES_NO:
                built = built.with_panel(_stat(panel))
            else:
                built = built.with_panel(_graph(panel))
        if row == HEATMAP_ROW:
            built = built.with_panel(_batch_size_heatmap())
    result = built.build()
    for number, built_panel in enumerate(result.panels or [], 1):
        built_panel.id_val = number  # fixed, because links and alerts refer to it
    return result


def dashboard_json(name: str) -> str:
    """Return the dashboard `name` as the JSON that Grafana reads."""
    return JSONEncoder(sort_keys=True, indent=2).encode(build_dashboard(name)) + "\n"


def _target(series: Series, letter: str = "A") -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(series.expr).legend_format(series.legend).ref_id(letter)


def _thresholds(limit: float) -> dashboard.ThresholdsConfig:
    steps = [Threshold(color="green", value=None), Threshold(color="red", value=limit)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _stat(panel: Panel) -> stat.Panel:
    built = stat.Panel().title(panel.title).description(panel.description).unit(panel.unit)
    built = built.datasource(_DATA_SOURCE).height(4).span(4)
    for series, letter in zip(panel.series, ascii_uppercase, strict=False):
        built = built.with_target(_target(series, letter))
    return built if panel.limit is None else built.thresholds(_thresholds(panel.limit))


def _graph(panel: Panel) -> timeseries.Panel:
    built = timeseries.Panel().title(panel.title).description(panel.description).unit(panel.unit)
    built = built.datasource(_DATA_SOURCE).height(8).span(12).fill_opacity(10)
    if not panel.is_signed:
        built = built.min(0)
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


def _timeline(panel: Panel) -> statetimeline.Panel:
    built = statetimeline.Panel().title(panel.title).description(panel.description)
    built = built.datasource(_DATA_SOURCE).height(5).span(24).show_value(VisibilityMode.NEVER)
    for series, letter in zip(panel.series, ascii_uppercase, strict=False):
        built = built.with_target(_target(series, letter))
    return built


def _batch_size_heatmap() -> heatmap.Panel:
    return (
        heatmap.Panel()
        .title("Batch sizes")
        .description("Number of batches by size.")
        .datasource(_DATA_SOURCE)
        .height(8)
        .span(12)
        .with_target(_target(BATCH_SIZES).format(PromQueryFormat.HEATMAP))
    )


if __name__ == "__main__":
    for key in DASHBOARDS:
        (FOLDER / f"{key}.json").write_text(dashboard_json(key), encoding="utf-8")
