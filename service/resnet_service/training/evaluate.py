"""Measure a model's accuracy on labeled images, through the runtime that serves it."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor
from tqdm import tqdm

from resnet_service.models import Model
from resnet_service.runtimes import Runtime
from resnet_service.training.data import Dataset

_TOP: Final = 5


@dataclass(frozen=True)
class Confusion:
    """`count` images of the class `label` whose best class was `predicted`, another one."""

    label: str
    predicted: str
    count: int


@dataclass(frozen=True)
class Evaluation:
    """What a model predicted for labeled images.

    Attributes:
        confusion: the number of images, int64 [C, C]: rows are classes, columns predictions.
        labels: of the model.
        top5_accuracy: the share of images, 0..1, whose class is among the five best; None if the model has no
            more than five.

    """

    confusion: Tensor
    labels: tuple[str, ...]
    top5_accuracy: float | None = None

    @property
    def accuracy(self) -> float:
        """The share of correct predictions, 0..1."""
        return (self.confusion.diagonal().sum() / self.confusion.sum()).item()

    def accuracy_by_class(self) -> dict[str, float]:
        """Return the share of correct predictions, 0..1, for each class that has images."""
        rows = zip(self._names, self.confusion, strict=True)
        return {name: (row[index] / row.sum()).item() for index, (name, row) in enumerate(rows) if row.sum()}

    def most_frequent_confusions(self, limit: int = 10) -> list[Confusion]:
        """Return the pairs of a class and a wrong prediction with the most images, the most frequent first.

        Pairs with the same count are in the order of the classes.
        """
        wrong = self.confusion.clone().fill_diagonal_(0)
        pairs = wrong.nonzero().tolist()
        pairs.sort(key=lambda pair: -wrong[*pair].item())  # stable
        return [
            Confusion(self._names[row], self._names[column], int(wrong[row, column]))
            for row, column in pairs[:limit]
        ]

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """The labels; one that several classes have, with the class index."""
        counts = Counter(self.labels)
        return tuple(
            f"{label} ({index})" if counts[label] > 1 else label for index, label in enumerate(self.labels)
        )


def evaluate(
    model: Model, runtime: Runtime, dataset: Dataset, *, mirrored: bool = False, batch_size: int = 64
) -> Evaluation:
    """Classify every image of `dataset`, whose targets are indices of the model's labels.

    `mirrored` adds the probabilities for each image's mirror image (test-time flip).
    """
    classes = len(model.labels)
    best: list[Tensor] = []
    with tqdm(
        total=len(dataset), desc="evaluating, mirrored" if mirrored else "evaluating", unit="image"
    ) as bar:
        for part in dataset.images.permute(0, 2, 3, 1).split(batch_size):
            probabilities = _probabilities(runtime, part, classes)
            if mirrored:
                probabilities += _probabilities(runtime, part.flip(2), classes)
            best.append(probabilities.topk(min(_TOP, classes)).indices)
            bar.update(len(part))
    ranking = torch.cat(best)
    top5 = (ranking == dataset.targets[:, None]).any(1).float().mean().item()
    return Evaluation(
        confusion_matrix(ranking[:, 0], dataset.targets, classes),
        model.labels,
        top5 if classes > _TOP else None,
    )


def confusion_matrix(predicted: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Count images by class (row) and predicted class (column), int64 [C, C]; both inputs are int64 [N]."""
    return torch.bincount(targets * classes + predicted, minlength=classes**2).view(classes, classes)


def _probabilities(runtime: Runtime, images: Tensor, classes: int) -> Tensor:
    """Return the probabilities of uint8 [N, S, S, 3] as [N, classes], in the order of the classes."""
    best = runtime.run(list(images.numpy()), classes)
    ids, values = torch.from_numpy(best.class_ids), torch.from_numpy(best.probabilities)
    return torch.zeros(len(images), classes).scatter_(1, ids, values)
