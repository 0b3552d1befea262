"""Count what one version of a model predicts: the best classes and their probabilities."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from resnet_service.inference.prediction_baseline import ModelBaseline
from resnet_service.metric_labels import OTHER_CLASS
from resnet_service.metrics import Metrics
from resnet_service.models import ModelDescription
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
        self._probability = metrics.prediction_probability.labels(*model.key)
        self._other = metrics.predictions.labels(*model.key, OTHER_CLASS)
        self._known = metrics.predicted_classes[model.key]
        if settings.baseline is not None:
            self._known.update(settings.baseline.shares.keys() & set(self._names))
        self._classes = {
            index: metrics.predictions.labels(*model.key, name)
            for index, name in enumerate(self._names)
            if name in self._known
        }

    def bind_metrics(self) -> None:
        """Make the gauges of the baseline those of this version, and not those of one bound before."""
        metrics, baseline = self._metrics, self.settings.baseline
        metrics.remove_baseline(*self._key)
        if baseline is not None:
            for name, share in (*baseline.shares.items(), (OTHER_CLASS, baseline.other_share)):
                metrics.baseline_share.labels(*self._key, name).set(share)
            metrics.baseline_probability.labels(*self._key).set(baseline.probability)

    def record(self, result: TopKResult) -> None:
        """Count the result of one image, best class first."""
        best = int(result.class_ids[0])
        counter = self._classes.get(best)
        if counter is None:
            counter = self._other
            if len(self._known) < self.settings.max_classes:
                self._known.add(self._names[best])
                counter = self._metrics.predictions.labels(*self._key, self._names[best])
                self._classes[best] = counter
        counter.inc()
        self._probability.observe(float(result.probabilities[0]))


def class_names(labels: Sequence[str]) -> list[str]:
    """Return a different name for each class: its label, with the index if another class has it, too.

    ImageNet has two classes "crane": "crane (134)" and "crane (517)".
    """
    counts = Counter(labels)
    return [label if counts[label] == 1 else f"{label} ({index})" for index, label in enumerate(labels)]
