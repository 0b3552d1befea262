"""Count what one version of a model predicts: the best classes, their probabilities and the entropy."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from resnet_service.inference.prediction_baseline import ModelBaseline
from resnet_service.metric_labels import OTHER_CLASS
from resnet_service.metrics import Metrics
from resnet_service.models import ModelDescription, ModelVersion
from resnet_service.runtimes import TopKResult


class PredictionSettings(NamedTuple):
    """How predictions are counted: up to `max_classes` classes have series, those of the baseline first."""

    max_classes: int = 100
    baseline: ModelBaseline | None = None


class PredictionMetrics:
    """The predictions of one version of a model, from its load to its unload.

    A class has a series of its own if it is in the baseline, or if fewer than the maximum have one when it is
    first predicted in this process. The others are counted together.

        predictions = PredictionMetrics(metrics, model, PredictionSettings())
        predictions.record(result)
    """

    def __init__(self, metrics: Metrics, model: ModelDescription, settings: PredictionSettings) -> None:
        self.settings = settings
        self._key = model.key
        self._metrics = metrics
        self._names = class_names(model.labels)

    @cached_property
    def _series(self) -> "_Series":
        """The series; created when the version serves, because a load that fails must leave none."""
        return _Series(self._metrics, self._key, self._names, self.settings)

    def bind_metrics(self) -> None:
        """Make the gauges of the baseline those of this version, and not those of one bound before."""
        metrics, baseline = self._metrics, self.settings.baseline
        _ = self._series  # rate() needs the 0 before the first prediction
        metrics.remove_baseline(*self._key)
        if baseline is not None:
            for name, share in (*baseline.shares.items(), (OTHER_CLASS, baseline.other_share)):
                metrics.baseline_share.labels(*self._key, name).set(share)
            metrics.baseline_probability.labels(*self._key).set(baseline.probability)

    def record(self, result: TopKResult) -> None:
        """Count the result of one image, best class first."""
        self._series.count(int(result.class_ids[0]), float(result.probabilities[0]), float(result.entropy))


class _Series:
    """The series of one version; those of its classes are created as described in `PredictionMetrics`."""

    def __init__(
        self, metrics: Metrics, key: ModelVersion, names: Sequence[str], settings: PredictionSettings
    ) -> None:
        self._key = key
        self._names = names
        self._max_classes = settings.max_classes
        self._counter = metrics.predictions
        self._probability = metrics.prediction_probability.labels(*key)
        self._entropy = metrics.prediction_entropy.labels(*key)
        self._other = metrics.predictions.labels(*key, OTHER_CLASS)
        self._known = metrics.predicted_classes[key]
        if settings.baseline is not None:
            self._known.update(settings.baseline.shares.keys() & set(names))
        self._classes = {
            index: metrics.predictions.labels(*key, name)
            for index, name in enumerate(names)
            if name in self._known
        }

    def count(self, best: int, probability: float, entropy: float) -> None:
        counter = self._classes.get(best)
        if counter is None:
            counter = self._other
            if len(self._known) < self._max_classes:
                self._known.add(self._names[best])
                counter = self._classes[best] = self._counter.labels(*self._key, self._names[best])
        counter.inc()
        self._probability.observe(probability)
        self._entropy.observe(entropy)


def class_names(labels: Sequence[str]) -> list[str]:
    """Return a different name for each class: its label, with the index if another class has it, too.

    ImageNet has two classes "crane": "crane (134)" and "crane (517)".
    """
    counts = Counter(labels)
    return [label if counts[label] == 1 else f"{label} ({index})" for index, label in enumerate(labels)]
