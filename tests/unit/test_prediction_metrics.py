"""Predictions in the metrics, and baselines of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from resnet_service.diagnostics.baseline_recorder import read_predictions, record_baseline
from resnet_service.errors import BaselineError
from resnet_service.images import Preprocessing
from resnet_service.inference.prediction_baseline import Baseline, ModelBaseline, read_baseline
from resnet_service.inference.prediction_metrics import PredictionMetrics, PredictionSettings, class_names
from resnet_service.metrics import Metrics
from resnet_service.models import ModelDescription
from resnet_service.runtimes import TopKResult

MODEL = ModelDescription("m", ("ant", "bee", "cat", "dog"), Preprocessing(8, 8, (0, 0, 0), (1, 1, 1)), "test")
BASELINE = ModelBaseline(images=1000, shares={"dog": 0.6, "bee": 0.1}, probability=0.8)


def result(class_id: int, probability: float = 0.5, entropy: float = 0.5) -> TopKResult:
    return TopKResult(np.array([class_id]), np.array([probability], np.float32), np.float32(entropy), "cpu")


def text(metrics: Metrics) -> str:
    return metrics.render("")[0].decode()


def by_class(metrics: Metrics, name: str) -> dict[str, float]:
    samples = [s for family in text_string_to_metric_families(text(metrics)) for s in family.samples]
    return {sample.labels["class"]: sample.value for sample in samples if sample.name == name}


def test_first_classes_have_series_and_the_others_are_counted_together() -> None:
    metrics = Metrics()
    predictions = PredictionMetrics(metrics, MODEL, PredictionSettings(max_classes=2))
    for class_id in (3, 0, 1, 2, 3):
        predictions.record(result(class_id))
    assert by_class(metrics, "inference_predictions_total") == {"_other": 2, "dog": 2, "ant": 1}


def test_probability_and_entropy_are_counted() -> None:
    metrics = Metrics()
    predictions = PredictionMetrics(metrics, MODEL, PredictionSettings())
    for probability, entropy in ((0.25, 0.75), (0.5, 0.25)):
        predictions.record(result(0, probability, entropy))
    labels = {"model": "m", "version": "1"}
    value = metrics.registry.get_sample_value
    for name, low, high in (("probability", "0.3", "0.6"), ("entropy", "0.3", "0.8")):
        counts = [
            value(f"inference_prediction_{name}_bucket", {**labels, "le": bound}) for bound in (low, high)
        ]
        assert counts == [1, 2]


def test_loads_of_a_version_do_not_add_series_beyond_the_limit() -> None:
    metrics = Metrics()
    for class_ids in ((0, 1), (2, 3), (1, 3)):
        predictions = PredictionMetrics(metrics, MODEL, PredictionSettings(max_classes=2))
        for class_id in class_ids:
            predictions.record(result(class_id))
    assert by_class(metrics, "inference_predictions_total") == {"_other": 3, "ant": 1, "bee": 2}


def test_classes_of_the_baseline_have_series_before_they_are_predicted() -> None:
    metrics = Metrics()
    predictions = PredictionMetrics(metrics, MODEL, PredictionSettings(2, BASELINE))
    predictions.record(result(0))
    assert by_class(metrics, "inference_predictions_total") == {"_other": 1, "bee": 0, "dog": 0}


def test_gauges_show_the_baseline_of_the_version_that_is_bound() -> None:
    metrics = Metrics()
    PredictionMetrics(metrics, MODEL, PredictionSettings(2, BASELINE)).bind_metrics()
    shares = by_class(metrics, "inference_baseline_share")
    assert shares == {"dog": 0.6, "bee": 0.1, "_other": pytest.approx(0.3)}
    newer = ModelBaseline(images=1, shares={"cat": 1.0}, probability=0.5)
    PredictionMetrics(metrics, MODEL, PredictionSettings(2, newer)).bind_metrics()
    assert by_class(metrics, "inference_baseline_share") == {"cat": 1, "_other": 0}
    PredictionMetrics(metrics, MODEL, PredictionSettings()).bind_metrics()
    assert by_class(metrics, "inference_baseline_share") == {}
    assert "inference_baseline_probability{" not in text(metrics)


def test_classes_with_the_same_label_have_different_names() -> None:
    assert class_names(("crane", "dog", "crane")) == ["crane (0)", "dog", "crane (2)"]


def test_baseline_has_the_most_frequent_classes_over_all_versions() -> None:
    metrics = Metrics()
    versions = [
        PredictionMetrics(metrics, replace(MODEL, version=version), PredictionSettings())
        for version in ("1", "2")
    ]
    for predictions in versions:
        for class_id, probability in ((3, 0.5), (3, 0.75), (0, 1.0), (1, 0.25), (3, 0.5)):
            predictions.record(result(class_id, probability))
    counts = read_predictions(text(metrics))
    assert record_baseline({}, counts, max_classes=1).models == {
        "m": ModelBaseline(images=10, shares={"dog": 0.6}, probability=0.6)
    }


def test_baseline_counts_only_what_is_between_two_readings() -> None:
    metrics = Metrics()
    predictions = PredictionMetrics(metrics, MODEL, PredictionSettings())
    predictions.record(result(0))
    before = read_predictions(text(metrics))
    predictions.record(result(1, 0.25))
    recorded = record_baseline(before, read_predictions(text(metrics)), max_classes=20)
    assert recorded.models["m"] == ModelBaseline(images=1, shares={"bee": 1.0}, probability=0.25)


def test_baseline_includes_classes_without_series_in_the_total() -> None:
    metrics = Metrics()
    predictions = PredictionMetrics(metrics, MODEL, PredictionSettings(max_classes=1))
    for class_id in (0, 1, 2, 3):
        predictions.record(result(class_id))
    recorded = record_baseline({}, read_predictions(text(metrics)), max_classes=20).models["m"]
    assert (recorded.images, recorded.shares, recorded.other_share) == (4, {"ant": 0.25}, 0.75)


def test_baseline_is_not_recorded_across_a_restart_or_without_images() -> None:
    metrics = Metrics()
    predictions = PredictionMetrics(metrics, MODEL, PredictionSettings())
    predictions.bind_metrics()
    empty = read_predictions(text(metrics))
    predictions.record(result(0))
    counts = read_predictions(text(metrics))
    with pytest.raises(BaselineError, match="was restarted"):
        record_baseline(counts, empty, max_classes=20)
    with pytest.raises(BaselineError, match="not classified an image"):
        record_baseline(counts, counts, max_classes=20)


def test_baseline_needs_classes_with_series() -> None:
    metrics = Metrics()
    PredictionMetrics(metrics, MODEL, PredictionSettings(max_classes=0)).record(result(0))
    with pytest.raises(BaselineError, match="--prediction-classes"):
        record_baseline({}, read_predictions(text(metrics)), max_classes=20)


@pytest.mark.parametrize(
    "metrics",
    [
        "",
        "up 1\n",
        'inference_predictions_total{model="m",class="c"} +Inf\n',
        "inference_predictions_total{model=1} 1\n",
        "<html>\n",
    ],
)
def test_text_that_is_not_of_a_service_is_an_error(metrics: str) -> None:
    with pytest.raises(BaselineError, match="metrics"):
        read_predictions(metrics)


def test_written_baseline_is_read_again(tmp_path: Path) -> None:
    baseline = Baseline(recorded_at="2026-12-01T00:00:00+00:00", models={"m": BASELINE})
    path = tmp_path / "baseline.json"
    path.write_text(baseline.model_dump_json())
    assert read_baseline(path) == baseline


def content(**changes: Any) -> str:
    model = {"images": 10, "shares": {"cat": 0.5}, "probability": 0.5} | changes
    return json.dumps({"format": 1, "recorded_at": "", "models": {"m": model}})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "invalid"),
        ('{"format": 2, "recorded_at": "", "models": {}}', "format"),
        (content(shares={}), "shares"),
        (content(shares={"cat": 0.7, "dog": 0.7}), "sum of the shares is more than 1"),
        (content(shares={"cat": -0.1}), "shares.cat"),
        (content(shares={"cat": float("nan")}), "shares.cat"),
        (content(images=0), "images"),
        (content(extra=1), "extra"),
    ],
)
def test_invalid_baseline_is_an_error_with_its_place(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(text)
    with pytest.raises(BaselineError, match=reason):
        read_baseline(path)


@pytest.mark.parametrize(("name", "reason"), [("absent.json", "No such file"), (".", "Not a regular file")])
def test_baseline_that_cannot_be_read_is_an_error(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match=reason):
        read_baseline(tmp_path / name)
