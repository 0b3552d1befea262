"""Measure a model's accuracy on labeled images, through the runtime that serves it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from resnet_service.models import Model
from resnet_service.runtimes import Runtime
from resnet_service.training.data import Dataset


@dataclass(frozen=True)
class Evaluation:
    """A model's labels and its confusion matrix, int64 [C, C]: rows are classes, columns predictions."""

    confusion: Tensor
    labels: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        """The share of correct predictions, 0..1."""
        return (self.confusion.diagonal().sum() / self.confusion.sum()).item()

    def accuracy_by_class(self) -> dict[str, float]:
        """Return the share of correct predictions, 0..1, for each label that has images."""
        rows = zip(self.labels, self.confusion, strict=True)
        return {
            label: (row[index] / row.sum()).item() for index, (label, row) in enumerate(rows) if row.sum()
        }


def evaluate(
    model: Model, runtime: Runtime, dataset: Dataset, *, mirrored: bool = False, batch_size: int = 64
) -> Evaluation:
    """Classify every image of `dataset`, whose targets are indices of the model's labels.

    `mirrored` adds the probabilities for each image's mirror image (test-time flip).
    """
    classes = len(model.labels)
    predicted: list[Tensor] = []
    with tqdm(
        total=len(dataset), desc="evaluating, mirrored" if mirrored else "evaluating", unit="image"
    ) as bar:
        for part in dataset.images.permute(0, 2, 3, 1).split(batch_size):
            probabilities = _probabilities(runtime, part, classes)
            if mirrored:
                probabilities += _probabilities(runtime, part.flip(2), classes)
            predicted.append(probabilities.argmax(1))
            bar.update(len(part))
    return Evaluation(confusion_matrix(torch.cat(predicted), dataset.targets, classes), model.labels)


def confusion_matrix(predicted: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Count images by class (row) and predicted class (column), int64 [C, C]; both inputs are int64 [N]."""
    return torch.bincount(targets * classes + predicted, minlength=classes**2).view(classes, classes)


def _probabilities(runtime: Runtime, images: Tensor, classes: int) -> Tensor:
    """Return the probabilities of uint8 [N, S, S, 3] as [N, classes], in the order of the classes."""
    best = runtime.run(list(images.numpy()), classes)
    ids, values = torch.from_numpy(best.class_ids), torch.from_numpy(best.probabilities)
    return torch.zeros(len(images), classes).scatter_(1, ids, values)
