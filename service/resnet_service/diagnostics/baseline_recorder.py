"""Record a baseline of predictions from the metrics of a running service."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime

from prometheus_client.parser import text_string_to_metric_families

from resnet_service.errors import BaselineError
from resnet_service.inference.prediction_baseline import Baseline, ModelBaseline
from resnet_service.metric_labels import OTHER_CLASS

_PREDICTIONS = "inference_predictions_total"
_PROBABILITY_SUM = "inference_prediction_probability_sum"


@dataclass
class PredictionCounts:
    """What a service has predicted since its start, by model, over all of its versions.

    Attributes:
        images: by the name of the best class.
        probability: sum of the probabilities of the best classes.
    """

    images: Counter[str] = field(default_factory=Counter)
    probability: float = 0.0


def read_predictions(metrics: str) -> dict[str, PredictionCounts]:
    """Return the counts in the text of /metrics. Raises BaselineError if it is not that of a service."""
    counts: defaultdict[str, PredictionCounts] = defaultdict(PredictionCounts)
    try:
        samples = [sample for family in text_string_to_metric_families(metrics) for sample in family.samples]
        for sample in samples:
            if sample.name == _PREDICTIONS:
                counts[sample.labels["model"]].images[sample.labels["class"]] += int(sample.value)
            elif sample.name == _PROBABILITY_SUM:
                counts[sample.labels["model"]].probability += sample.value
    except (ValueError, KeyError, OverflowError) as error:
        raise BaselineError("the service does not return metrics in Prometheus' text format") from error
    if not counts:
        raise BaselineError("the metrics of the service have no predictions: it is older than this program")
    return dict(counts)


def record_baseline(
    before: dict[str, PredictionCounts], after: dict[str, PredictionCounts], max_classes: int
) -> Baseline:
    """Return the baseline of the predictions between two readings, with the most frequent classes.

    Models without a new prediction are left out. Raises BaselineError if no model is left, or if the service
    was restarted in between.
    """
    models: dict[str, ModelBaseline] = {}
    for name, counts in after.items():
        previous = before.get(name, PredictionCounts())
        images = counts.images.copy()
        images.subtract(previous.images)
        if min(images.values(), default=0) < 0:
            raise BaselineError("the service was restarted meanwhile; record the baseline again")
        total = images.total()
        del images[OTHER_CLASS]
        frequent = [(class_name, count) for class_name, count in images.most_common(max_classes) if count]
        if frequent:
            models[name] = ModelBaseline(
                images=total,
                shares={class_name: count / total for class_name, count in frequent},
                probability=min(1.0, (counts.probability - previous.probability) / total),
            )
    if not models:
        if any(counts.images[OTHER_CLASS] for counts in after.values()):
            raise BaselineError("no class has a series of its own: raise --prediction-classes of the service")
        raise BaselineError("the service has not classified an image; send it some of those that are usual")
    return Baseline(recorded_at=datetime.now(UTC).isoformat(timespec="seconds"), models=models)
