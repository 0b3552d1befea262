"""Every plot is readable: nothing is cut off, no text overlaps, and no legend covers data."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="needs the extra train")

from load_tests import plots as load_plots
from load_tests.incident import Slowdown, draw_dashboard
from load_tests.request_log import RequestLog, RequestRecord
from monitoring.panels import BATCH_SIZES, DASHBOARDS, Series
from resnet_service.benchmark import plots as benchmark_plots
from resnet_service.benchmark.comparison import ModelComparison
from resnet_service.benchmark.results import Variant, load_results
from resnet_service.training import plots as training_plots
from tests.support import REPOSITORY
from tests.support.plots import check_readable, texts_of

LONG_NAME = "projects/classification/runs/2026-11-01/long-name-of-an-experiment-12/model.safetensors"


def comparison(model: str, latency_ms: float, accuracy: float | None) -> ModelComparison:
    """Return the results of a model that agrees with the first one on half of the images."""
    variant = Variant("cpu", "openvino", "bf16")
    return ModelComparison(model, variant, latency_ms, 100.0, 138_000_000, None, 0.5, accuracy, 10)


@pytest.mark.parametrize(
    "rows",
    [
        [comparison("cifar10", 3.0, 1.0)],
        [comparison("vgg16", 300.0, 0.0), comparison("tiny", 0.01, 1.0)],
        [comparison("resnet18", 10.0, None), comparison(LONG_NAME, 10.0, None)],
        [comparison(f"model-{number}", 10.0, 0.9) for number in range(20)],
    ],
    ids=["one", "extremes", "long name", "many"],
)
def test_comparison_of_models_is_readable(rows: list[ModelComparison], tmp_path: Path) -> None:
    """Each model has a legend entry, and accuracy has no ticks above 100 % or below 0."""
    figure = benchmark_plots.accuracy_over_latency(rows, tmp_path / "plot.png")
    check_readable(figure)
    [axes] = figure.axes
    assert all(0 <= tick <= 1 for tick in axes.get_yticks())
    assert all(tick >= 0 for tick in axes.get_xticks())
    labels = [text.get_text().replace("\n", "") for text in axes.get_legend().get_texts()]  # type: ignore[union-attr]
    assert all(label.startswith(row.model) for row, label in zip(rows, labels, strict=True))
    looks = {(line.get_color(), line.get_marker()) for line in axes.lines}
    assert len(looks) == len(rows)


@pytest.mark.parametrize(("machines", "rows"), [(1, 1), (4, 30)])
def test_plot_of_batch_sizes_is_readable(machines: int, rows: int, tmp_path: Path) -> None:
    """With one point and with twenty lines, the legend names each machine and the title the model."""
    run = load_results(REPOSITORY / "notebooks/results/amd-epyc-2-cores.json")
    run = replace(run, model=run.model[:rows])
    processors = [f"Processor {number} with a long name of its manufacturer" for number in range(machines)]
    runs = [replace(run, hardware=replace(run.hardware, processor=name)) for name in processors]
    figure = benchmark_plots.over_batch_sizes(runs, "resnet50", tmp_path / "plot.png")
    check_readable(figure)
    assert figure.get_suptitle() == "resnet50"
    assert all(name in texts_of(figure) for name in processors)


@pytest.mark.parametrize("count", [1, 2, 16, 200])
def test_learning_curve_is_readable(count: int, tmp_path: Path) -> None:
    """Loss, accuracy and learning rate have axes of their own; the title names the run, however long."""
    log = json.loads((REPOSITORY / "service/resnet_service/models/bundled/cifar10.json").read_text())
    log["data"] = LONG_NAME * 3
    log["epochs"] = [{**log["epochs"][number % 16], "number": number + 1} for number in range(count)]
    figure = training_plots.learning_curve(log, tmp_path / "plot.png")
    check_readable(figure)
    lines = {axes.get_ylabel(): [line.get_label() for line in axes.lines] for axes in figure.axes}
    assert [len(labels) for labels in lines.values()] == [1, 2, 1]
    title = figure.get_suptitle().replace("\n", "")
    assert "cifar-resnet18" in title
    assert f"{log['epochs'][-1]['accuracy']:.2%}" in title


@pytest.mark.parametrize("classes", [1, 25, 50, 51])
def test_confusion_matrix_is_readable(classes: int, tmp_path: Path) -> None:
    """Long names of classes are shortened, and the title has the number of images."""
    labels = [f"class {number} with a name that is longer than the matrix" for number in range(classes)]
    counts = torch.full((classes, classes), 10_000)
    figure = training_plots.confusion_matrix(counts, labels, tmp_path / "plot.png")
    check_readable(figure)
    assert f"{classes * classes * 10_000:,} test images" in texts_of(figure)


@pytest.mark.parametrize("shape", [(1, 8, 8), (64, 32, 32), (5, 4, 32)], ids=str)
def test_feature_maps_are_readable(shape: tuple[int, int, int], tmp_path: Path) -> None:
    """The title has the name of model and layer, and the number and size of the maps."""
    figure = training_plots.channels(torch.rand(shape), f"{LONG_NAME}, layer1", tmp_path / "plot.png")
    check_readable(figure)
    channels, height, width = shape
    text = texts_of(figure).replace("\n", "")
    assert f"{LONG_NAME}, layer1".replace(" ", "") in text.replace(" ", "")
    assert f"{channels} of {width} x {height}" in text


def requests(count: int, seconds: float) -> RequestLog:
    """Return a log of requests of which every fourth is rejected."""
    records = [
        RequestRecord(number * seconds / count, 0.0, "typical", 200, "", 0.05 * (1 + number % 7))
        if number % 4
        else RequestRecord(number * seconds / count, 0.0, "typical", 429, "", 0.002, 1.0)
        for number in range(count)
    ]
    return RequestLog.from_records(records, seconds)


@pytest.mark.parametrize("count", [0, 1, 2, 2000])
def test_timeline_is_readable(count: int, tmp_path: Path) -> None:
    """Without requests, and with a long name of the model."""
    title = f"burst\n{LONG_NAME * 2}"
    figure = load_plots.draw_timeline(title, requests(count, 9.5), 80, tmp_path / "plot.png")
    check_readable(figure)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_capacity_is_readable(count: int, tmp_path: Path) -> None:
    """Latencies have axes of their own with at least two labels; no request may have succeeded."""
    points = [load_plots.CapacityPoint(80.0 * number, 80.0, 20.0, 30.0) for number in range(1, count)]
    points.append(load_plots.CapacityPoint.from_log(requests(1, 1.0)))
    assert math.isnan(points[-1].p99_ms)
    figure = load_plots.draw_capacity(points, "resnet50\nopen loop", tmp_path / "plot.png")
    check_readable(figure)
    rates, latency = figure.axes
    assert "resnet50" in figure.get_suptitle()
    assert {line.get_label() for line in latency.lines} == {"p50", "p99"}
    low, high = latency.get_ylim()
    assert sum(low <= tick <= high for tick in latency.get_yticks()) >= 2
    assert rates.get_ylim()[0] == 0


@pytest.mark.parametrize("name", DASHBOARDS)
@pytest.mark.parametrize(("count", "value"), [(1, 0.0), (100, 123_456.0)])
def test_drawn_dashboard_is_readable(name: str, count: int, value: float, tmp_path: Path) -> None:
    """With one sample of 0, and with seven lines in a panel."""

    def query(series: Series) -> list[tuple[str, list[float], list[float]]]:
        legends = [series.legend.replace("{{instance}}", "127.0.0.1:40000")]
        if series == BATCH_SIZES:
            legends = ["1.0", "32.0", "+Inf"]
        elif series.legend in ("{{reason}}", "{{outcome}}"):
            legends = [f"header_too_large_{number}" for number in range(7)]
        seconds = [2.0 * number for number in range(count)]
        return [(legend, seconds, [value] * count) for legend in legends if count]

    figure = draw_dashboard(name, LONG_NAME, Slowdown(0, 60, 150, 210), query, tmp_path / "plot.png")
    check_readable(figure)
    titles = {axes.get_title() for axes in figure.axes}
    assert {panel.title for panels in DASHBOARDS[name][1].values() for panel in panels} <= titles
    assert LONG_NAME in figure.get_suptitle().replace("\n", "")
