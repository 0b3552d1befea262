"""Measure how often a model is right on labeled images, through the runtime that serves it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from resnet_service.models import Model
from resnet_service.runtimes import Runtime
from resnet_service.training import model_card
from resnet_service.training.data import Dataset


@dataclass(frozen=True)
class Evaluation:
    """The confusion matrix [C, C] of a model, rows by class, columns by answer, and its labels."""

    confusion: Tensor
    labels: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        """The share of right answers, 0..1."""
        return (self.confusion.diagonal().sum() / self.confusion.sum()).item()

    def by_class(self) -> dict[str, float]:
        """Return the share of right answers for each class that has images, 0..1."""
        shares = model_card.accuracy_by_class(self.confusion, self.labels)
        return {label: share for label, share in shares.items() if share is not None}


def evaluate(
    model: Model, runtime: Runtime, dataset: Dataset, *, mirrored: bool = False, batch_size: int = 64
) -> Evaluation:
    """Classify every image of `dataset`, whose targets are indices of the model's labels.

    `mirrored` adds the probabilities of each image's mirror image (test-time flip).
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
    return Evaluation(
        model_card.confusion_matrix(torch.cat(predicted), dataset.targets, classes), model.labels
    )


def _probabilities(runtime: Runtime, images: Tensor, classes: int) -> Tensor:
    """[N, S, S, 3] uint8 -> [N, classes] in the order of the classes."""
    best = runtime.run(list(images.numpy()), classes)
    ids, values = torch.from_numpy(best.class_ids), torch.from_numpy(best.probabilities)
    return torch.zeros(len(images), classes).scatter_(1, ids, values)
