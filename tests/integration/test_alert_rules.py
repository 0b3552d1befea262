"""Test when each alert fires, and when none does, with promtool at scrape intervals of 5 and 60 s.

A series is a function of the seconds since the start. Each situation begins healthy and changes after 600 s.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

import pytest
import yaml

from monitoring import panels
from resnet_service.inference.prediction_baseline import MAX_CLASSES
from tests.support.prometheus import RULES, RULES_FILE, assert_promtool
from tests.support.server import only_once

pytestmark = only_once


Value = Callable[[int], float | None]
"""Seconds to the value of a sample; None if the target is not scraped any more."""

Inputs = Mapping[str, Value]

INTERVALS_S: Final = (5, 60)
CHANGE_S: Final = 600
END_S: Final = 4200
JOB: Final = 'job="resnet-service"'
TARGET: Final = f'{JOB}, instance="a"'
OTHER_TARGET: Final = 'job="resnet-service", instance="b"'
INTERACTIVE: Final = 'priority="interactive"'
_BUCKETS: Final = (', le="0.1"', ', le="+Inf"')
_EXTRA_LABELS: Final = {
    "inference_queue_depth": (f", {INTERACTIVE}",),
    "inference_queue_wait_seconds": (f", {INTERACTIVE}",),
    "inference_images_total": (', outcome="ok"',),
    "inference_shadow_images_total": tuple(
        f', outcome="{outcome}"' for outcome in ("agree", "disagree", "failed")
    ),
}
VERSION: Final = 'model="m", version="2"'
PREDICTIONS: Final = f'{TARGET}, route="/predict", method="POST"'
REQUESTS: Final = f'inference_request_seconds_count{{{PREDICTIONS}, status="200"}}'
FAILURES: Final = f'inference_request_seconds_count{{{PREDICTIONS}, status="500"}}'
PROBES: Final = f'inference_request_seconds_count{{{TARGET}, route="/healthz", method="GET", status="200"}}'


def before_and_after(before: float | None, after: float | None) -> Value:
    """Return a gauge that changes once."""
    return lambda t: before if t < CHANGE_S else after


def for_a_minute(before: float, during: float) -> Value:
    """Return a gauge that changes for a minute: one sample at the longest interval."""
    return lambda t: during if CHANGE_S <= t < CHANGE_S + 60 else before


def counter(per_second: float, per_second_after: float | None = None, start: float = 0) -> Value:
    """Return a counter whose rate changes once."""
    after = per_second if per_second_after is None else per_second_after
    return lambda t: start + per_second * min(t, CHANGE_S) + after * max(0, t - CHANGE_S)


def latency_bucket(le: str) -> str:
    return f'inference_request_seconds_bucket{{{PREDICTIONS}, status="200", le="{le}"}}'


class Firing(NamedTuple):
    """A situation in which one alert fires: not yet `silent_s` after the change, but `fires_s` after it."""

    alert: str
    labels: str
    silent_s: int
    fires_s: int
    inputs: Inputs


Shares = Mapping[str, float]
"""The shares of the images, by their best class."""

CLASSES: Final = ("cat", "dog", "frog", "ship")
TEN: Final[Shares] = {f"class {index}": 0.1 for index in range(10)}
ONLY_ONE: Final[Shares] = {"class 0": 1.0}


def prediction_series(
    baseline: Shares,
    shares: Callable[[int], Shares],
    images_per_second: float,
    *,
    random: Random | None = None,
    version: str = VERSION,
) -> Inputs:
    """Return the counters of images with the shares at each second, and the baseline.

    With `random`, each image is a random one.
    """
    images = {name: [0.0] for name in shares(0)}
    for t in range(1, END_S):
        now = shares(t)
        drawn: Mapping[str, float] = now
        if random is not None:
            drawn = Counter(random.choices(list(now), list(now.values()), k=round(images_per_second)))
        scale = images_per_second / sum(drawn.values())
        for name, counts in images.items():
            counts.append(counts[-1] + scale * drawn.get(name, 0))
    inputs: dict[str, Value] = {
        f'inference_predictions_total{{{TARGET}, {version}, class="{name}"}}': counts.__getitem__
        for name, counts in images.items()
    }
    for name, share in baseline.items():
        labels = f'{TARGET}, {version}, class="{name}"'
        inputs[f"inference_baseline_share{{{labels}}}"] = partial(lambda share, _: share, share)
    return inputs


def predictions(after: Shares, *, noise: bool = False, per_second: float = 0.5) -> Inputs:
    """Return the counters of classes that are equally frequent before the change, and `after` it.

    The baseline has equal shares of three classes, and `_other`. With `noise`, each image is a random one.
    """
    before = dict.fromkeys(CLASSES, 0.25)
    baseline = dict.fromkeys((*CLASSES[:3], "_other"), 0.25)
    random = Random(1) if noise else None
    return prediction_series(
        baseline, lambda t: after if t >= CHANGE_S else before, per_second, random=random
    )


FIRING: Final = (
    Firing(
        "InferenceDown",
        f'{TARGET}, severity="critical"',
        60,
        180,
        {f"up{{{TARGET}}}": before_and_after(1, 0)},
    ),
    Firing(
        "InferenceAbsent",
        'job="resnet-service", severity="critical"',
        60,
        180,
        {f"up{{{TARGET}}}": before_and_after(1, None), 'up{job="other"}': lambda _: 1},
    ),
    Firing(
        "InferenceInstancesLost",
        'job="resnet-service", severity="warning"',
        60,
        240,
        {f"up{{{TARGET}}}": lambda _: 1, f"up{{{OTHER_TARGET}}}": before_and_after(1, None)},
    ),
    Firing(
        "InferenceInstancesLost",  # all of one of two namespaces
        'job="resnet-service", namespace="x", severity="warning"',
        60,
        240,
        {
            f'up{{{TARGET}, namespace="x"}}': before_and_after(1, None),
            f'up{{{TARGET}, namespace="y"}}': lambda _: 1,
        },
    ),
    Firing(
        "InferenceNotReady",
        f'{TARGET}, severity="critical"',
        60,
        240,
        {f"inference_ready{{{TARGET}}}": before_and_after(1, 0)},
    ),
    Firing(
        "InferenceErrors",  # of 2 % of the predictions; probes never fail and do not count
        f'{TARGET}, severity="critical"',
        120,
        420,
        {REQUESTS: counter(20, 19.6), FAILURES: counter(0, 0.4), PROBES: counter(200)},
    ),
    Firing(
        "InferenceSlow",  # half of the responses
        f'{TARGET}, severity="warning"',
        240,
        480,
        {
            latency_bucket("1"): counter(10, 5),
            latency_bucket("2.5"): counter(10),
            latency_bucket("+Inf"): counter(10),
        },
    ),
    Firing(
        "InferenceQueueFilling",
        f'{TARGET}, severity="warning"',
        60,
        180,
        {
            f"inference_queue_wait_seconds{{{TARGET},{INTERACTIVE}}}": before_and_after(2, 18),
            f"inference_queue_wait_limit_seconds{{{TARGET}}}": lambda _: 20,
            f"inference_queue_wait_seconds{{{OTHER_TARGET},{INTERACTIVE}}}": lambda _: 2,
            f"inference_queue_wait_limit_seconds{{{OTHER_TARGET}}}": lambda _: 20,
        },
    ),
    Firing(
        "InferenceRejecting",
        f'{TARGET}, reason="queue_full", severity="warning"',
        240,
        480,
        {
            f'inference_rejected_total{{{TARGET}, reason="queue_full"}}': counter(0, 0.1),
            f'inference_rejected_total{{{TARGET}, reason="deadline"}}': counter(0),
        },
    ),
    Firing(
        "InferencePredictionLogDropping",  # not for the rate, which is a limit on purpose
        f'{TARGET}, reason="write_failed", severity="warning"',
        240,
        480,
        {
            f'inference_prediction_log_dropped_total{{{TARGET}, reason="write_failed"}}': lambda t: (
                50.0 * max(0, (t - CHANGE_S) // 1200 + 1)  # files of 20 minutes
            ),
            f'inference_prediction_log_dropped_total{{{TARGET}, reason="rate"}}': counter(5),
        },
    ),
    Firing(
        "InferenceDeviceMemory",  # b is a CPU, which has no memory of its own
        f'{TARGET}, severity="warning"',
        240,
        420,
        {
            f"inference_device_memory_bytes{{{TARGET}}}": before_and_after(50, 95),
            f"inference_device_memory_limit_bytes{{{TARGET}}}": lambda _: 100,
            f"inference_device_memory_bytes{{{OTHER_TARGET}}}": lambda _: 0,
            f"inference_device_memory_limit_bytes{{{OTHER_TARGET}}}": lambda _: 0,
        },
    ),
    Firing(
        "InferenceDecoderRestarts",
        f'{TARGET}, reason="crashed", severity="warning"',
        60,
        300,
        {
            f'inference_sandbox_restarts_total{{{TARGET}, reason="crashed"}}': counter(0, 1 / 30),
            f'inference_sandbox_restarts_total{{{TARGET}, reason="timeout"}}': before_and_after(0, 1),
        },
    ),
    Firing(
        "InferenceWorkerRestarts",
        f'{TARGET}, severity="warning"',
        60,
        240,
        {
            f"inference_worker_restarts_total{{{TARGET}}}": lambda t: (
                5 + (t >= CHANGE_S) + (t >= CHANGE_S + 90)
            ),
            f"inference_worker_restarts_total{{{OTHER_TARGET}}}": before_and_after(5, 6),
        },
    ),
    Firing(
        "InferencePredictionsShifted",  # all images are cats
        f'{JOB}, {VERSION}, severity="warning"',
        60,
        1200,
        predictions({"cat": 1.0}),
    ),
    Firing(
        "InferencePredictionsShifted",  # a small shift, with enough images in 30 minutes only
        f'{JOB}, {VERSION}, severity="warning"',
        900,
        1800,
        predictions({"cat": 0.55, "dog": 0.15, "frog": 0.15, "ship": 0.15}),
    ),
)

SILENT: Final[dict[str, Inputs]] = {
    "a failed scrape": {f"up{{{TARGET}}}": for_a_minute(1, 0)},
    "a start": {f"inference_ready{{{TARGET}}}": for_a_minute(1, 0)},
    "a rollout": {
        f"up{{{TARGET}}}": lambda t: 1 if t < CHANGE_S + 60 else None,
        f"up{{{OTHER_TARGET}}}": lambda t: 1 if t < CHANGE_S + 180 else None,
        'up{job="resnet-service", instance="c"}': before_and_after(None, 1),
        'up{job="resnet-service", instance="d"}': lambda t: 1 if t >= CHANGE_S + 120 else None,
    },
    "an added instance": {
        f"up{{{TARGET}}}": lambda _: 1,
        f"up{{{OTHER_TARGET}}}": before_and_after(None, 1),
    },
    "no requests": {REQUESTS: counter(0), FAILURES: counter(0), latency_bucket("+Inf"): counter(0)},
    "0.5 % failures": {REQUESTS: counter(19.9), FAILURES: counter(0.1)},
    "a restart, which resets the counters": {
        REQUESTS: lambda t: 20 * (t % CHANGE_S),
        FAILURES: lambda t: 0.1 * (t % CHANGE_S),
    },
    "a peak of the queue": {
        f"inference_queue_wait_seconds{{{TARGET},{INTERACTIVE}}}": for_a_minute(2, 18),
        f"inference_queue_wait_limit_seconds{{{TARGET}}}": lambda _: 20,
    },
    "a single rejection": {
        f'inference_rejected_total{{{TARGET}, reason="deadline"}}': before_and_after(5, 6),
    },
    "three decoder restarts": {
        f'inference_sandbox_restarts_total{{{TARGET}, reason="killed"}}': before_and_after(5, 8),
    },
    "other classes by chance": predictions(dict.fromkeys(CLASSES, 0.25), noise=True, per_second=1),
    "a class that is a little more frequent": predictions({"cat": 0.4, "dog": 0.2, "frog": 0.2, "ship": 0.2}),
    "other classes of a few images": predictions({"cat": 1.0}, per_second=0.05),
    "a worker restart": {f"inference_worker_restarts_total{{{TARGET}}}": before_and_after(5, 6)},
}


def samples(value: Value, interval_s: int) -> str:
    """Return a series in promtool's notation, with one sample or `_` for each second.

    Scrapes are half an interval away from the evaluations of rules: at the same moments, a window of one
    minute would have two samples with an interval of a minute. A target that is gone leaves a stale series.
    """
    texts = ["_"] * END_S
    previous: float | None = None
    for t in range(interval_s // 2, END_S, interval_s):
        now = value(t)
        texts[t] = str(now) if now is not None else "_" if previous is None else "stale"
        previous = now
    return " ".join(texts)


def expect(expression: str, at_s: int, *expected: tuple[str, float]) -> dict[str, Any]:
    """Return a test of promtool: the samples of an expression at a time."""
    exp_samples = [{"labels": labels, "value": value} for labels, value in expected]
    return {"expr": expression, "eval_time": f"{at_s}s", "exp_samples": exp_samples}


def check(
    folder: Path,
    interval_s: int,
    inputs: Inputs,
    expectations: list[dict[str, Any]],
    *,
    evaluation_s: int | None = None,
) -> None:
    """Run promtool with the shipped rules, on inputs that are scraped every `interval_s`.

    Promtool ignores the interval of a group, and evaluates all groups every `evaluation_s`.
    """
    series = [{"series": name, "values": samples(value, interval_s)} for name, value in inputs.items()]
    test = {"interval": "1s", "input_series": series, "promql_expr_test": expectations}
    file = folder / "test.yml"
    rules = {
        "rule_files": [str(RULES_FILE)],
        "evaluation_interval": f"{evaluation_s or max(15, interval_s)}s",
        "tests": [test],
    }
    file.write_text(yaml.safe_dump(rules))
    assert_promtool("test", "rules", file)


@pytest.mark.parametrize("interval_s", INTERVALS_S)
@pytest.mark.parametrize("situation", FIRING, ids=lambda situation: situation.alert)
def test_alert_fires_when_it_must(situation: Firing, interval_s: int, tmp_path: Path) -> None:
    """Each alert is silent at first and fires later, whatever the scrape interval."""
    alert = f'alertname="{situation.alert}", alertstate="firing"'
    firing = f"ALERTS{{{alert}}}"
    expectations = [
        expect(firing, CHANGE_S + situation.silent_s),
        expect(firing, CHANGE_S + situation.fires_s, (f"ALERTS{{{alert}, {situation.labels}}}", 1)),
    ]
    check(tmp_path, interval_s, situation.inputs, expectations)


@pytest.mark.parametrize("interval_s", INTERVALS_S)
@pytest.mark.parametrize("name", SILENT)
def test_no_alert_fires_without_a_reason(name: str, interval_s: int, tmp_path: Path) -> None:
    """What passes by itself, or happens on every rollout, raises no alert."""
    inputs = {'up{job="resnet-service", instance="z"}': lambda _: 1.0, **SILENT[name]}
    firing = 'ALERTS{alertstate="firing"}'
    check(tmp_path, interval_s, inputs, [expect(firing, t) for t in range(0, END_S, 60)])


@pytest.mark.parametrize("interval_s", INTERVALS_S)
def test_recorded_series_do_not_depend_on_the_interval(interval_s: int, tmp_path: Path) -> None:
    """Each recording rule returns the true value."""
    inputs: Inputs = {
        f"up{{{TARGET}}}": lambda _: 1,
        REQUESTS: counter(19),
        FAILURES: counter(1),
        latency_bucket("0.1"): counter(9),
        latency_bucket("+Inf"): counter(19),
        f"inference_queue_wait_seconds{{{TARGET},{INTERACTIVE}}}": lambda _: 5,
        f"inference_queue_wait_limit_seconds{{{TARGET}}}": lambda _: 20,
        f'inference_shadow_images_total{{{TARGET}, {VERSION}, outcome="agree"}}': counter(9.95),
        f'inference_shadow_images_total{{{TARGET}, {VERSION}, outcome="disagree"}}': counter(0.05),
        f'inference_shadow_images_total{{{TARGET}, {VERSION}, outcome="failed"}}': counter(0),
        **predictions({"cat": 1.0}, per_second=2),
    }
    version = f"{JOB}, {VERSION}"
    windows = [f'{version}, window="{window}"' for window in ("4m", "30m")]
    classes = [f'{version}, class="{name}"' for name in ("_other", "cat", "dog", "frog")]
    values: dict[str, list[tuple[str, float]]] = {
        "instance:inference_requests:rate5m": [(TARGET, 20)],
        "instance:inference_request_errors:rate5m": [(TARGET, 1)],
        "instance:inference_request_errors:ratio_rate5m": [(TARGET, 0.05)],
        "instance:inference_request_seconds:p99_5m": [(TARGET, 0.1)],
        "instance:inference_queue:ratio": [(TARGET, 0.25)],
        "version:inference_shadow_can_take_over:bool": [(version, 1)],
        "version:inference_baseline_share:max": [(labels, 0.25) for labels in classes],
        "version:inference_baseline_class_share:increase": [
            (f'{window}, class="{name}"', 0.25) for window in windows for name in CLASSES[:3]
        ],
        "version:inference_prediction_share:increase": [
            (f'{window}, class="{name}"', 0.25) for window in windows for name in ("_other", *CLASSES[:3])
        ],
        "version:inference_prediction_shift:psi": [(window, 0) for window in windows],
        "job:inference_instances:count": [(JOB, 1)],
    }
    not_exact = {  # extrapolated in the first hour
        "version:inference_shadow_compared:increase1h",
        "version:inference_class_predictions:increase",
        "version:inference_predictions:increase",
    }
    assert set(values) | not_exact == {rule["record"] for rule in RULES if "record" in rule}
    expectations = [
        expect(name, CHANGE_S, *((f"{name}{{{labels}}}", value) for labels, value in series))
        for name, series in values.items()
    ]
    check(tmp_path, interval_s, inputs, expectations)


@pytest.mark.parametrize("interval_s", INTERVALS_S)
def test_each_panel_has_data_at_each_interval(interval_s: int, tmp_path: Path) -> None:
    """Grafana makes `$__rate_interval` four scrape intervals; panels have no other windows."""
    queries = [series.expr for _, series in panels.queries()]
    expressions = [*queries, *(rule["expr"] for rule in RULES)]
    names = {name for text in expressions for name in re.findall(r"\b(?:inference|process)_\w+", text)}
    labels = f'{TARGET}, {VERSION}, route="/predict", status="200", stage="decode", reason="limit", class="c"'
    inputs = {
        f"{name}{{{labels}{extra}}}": counter(10)
        for name in names
        for extra in _EXTRA_LABELS.get(name, _BUCKETS if name.endswith("_bucket") else ("",))
    }
    expectations = []
    for query in queries:
        expression = panels.fill_in(query, f"{4 * interval_s}s")
        assert set(re.findall(r"\[(.*?)\]", query)) <= {"$__rate_interval"}
        expectations.append(expect(f"count({expression}) > bool 0", CHANGE_S, ("{}", 1)))
    check(tmp_path, interval_s, inputs, expectations)


def version_labels(version: int) -> str:
    return f'model="m", version="{version}"'


# Scrapes that are 60 s apart show a shift up to 60 s later.
@pytest.mark.parametrize(("interval_s", "evaluations"), [(5, 2), (60, 3)])
def test_a_strong_shift_raises_the_alert_within_two_evaluations(
    interval_s: int, evaluations: int, tmp_path: Path
) -> None:
    """Only one of ten equally frequent classes: it fires, whenever this begins between two evaluations."""
    groups = yaml.safe_load(RULES_FILE.read_text())["groups"]
    [group] = [group for group in groups if group["name"] == "resnet-service-predictions"]
    assert group["interval"] == "1m"
    inputs: dict[str, Value] = {}
    expectations = []
    for start in range(CHANGE_S, CHANGE_S + 60, 3):
        version = version_labels(start)
        changed = partial(lambda start, t: ONLY_ONE if t > start else TEN, start)
        inputs |= prediction_series(TEN, changed, 2, version=version)
        shift = f'alertname="InferencePredictionsShifted", alertstate="firing", {version}'
        firing = (f'ALERTS{{{shift}, {JOB}, severity="warning"}}', 1)
        expectations += [
            expect(f"ALERTS{{{shift}}}", start),
            expect(f"ALERTS{{{shift}}}", start + 60 * evaluations, firing),
        ]
    check(tmp_path, interval_s, inputs, expectations, evaluation_s=60)


# Scrapes that are 60 s apart cannot show that the images of a minute were of one class for only a part of it.
@pytest.mark.parametrize(("interval_s", "burst_s"), [(5, 40), (60, 30)])
def test_a_short_burst_of_one_class_raises_no_alert(interval_s: int, burst_s: int, tmp_path: Path) -> None:
    """It takes longer than half a minute of a strong shift."""

    def shares(t: int) -> Shares:
        return ONLY_ONE if CHANGE_S <= t < CHANGE_S + burst_s else TEN

    shift = 'ALERTS{alertname="InferencePredictionsShifted"}'
    expectations = [expect(shift, t) for t in range(0, END_S, 15)]
    check(tmp_path, interval_s, prediction_series(TEN, shares, 2), expectations)


@pytest.mark.parametrize("interval_s", INTERVALS_S)
def test_random_images_of_the_usual_shares_raise_no_alert(interval_s: int, tmp_path: Path) -> None:
    """In more than an hour, with baselines of ten and of the most classes, and with few and many images."""
    equal = dict.fromkeys(map(str, range(MAX_CLASSES)), 1 / MAX_CLASSES)
    weights = [1 / rank for rank in range(1, 1001)]  # Zipf's law, of the classes of ImageNet
    zipf = {str(rank): weight / sum(weights) for rank, weight in enumerate(weights[:MAX_CLASSES])}
    zipf["_other"] = 1 - sum(zipf.values())
    traffic = [(TEN, 1), (TEN, 2), (TEN, 2), (TEN, 20), (equal, 2), (zipf, 9)]
    inputs: dict[str, Value] = {}
    for seed, (baseline, images_per_second) in enumerate(traffic):
        inputs |= prediction_series(
            baseline,
            partial(lambda shares, _: shares, baseline),
            images_per_second,
            random=Random(seed),
            version=version_labels(seed),
        )
    firing = 'ALERTS{alertname="InferencePredictionsShifted"}'
    check(tmp_path, interval_s, inputs, [expect(firing, t) for t in range(0, END_S, 60)], evaluation_s=60)


def test_every_alert_is_tested() -> None:
    """Each alert has a situation in which it fires."""
    assert {situation.alert for situation in FIRING} == {rule["alert"] for rule in RULES if "alert" in rule}
