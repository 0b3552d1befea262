"""Torchvision's classifiers by name, with the labels and preprocessing of their published weights."""

from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from torch import nn
from torchvision import models
from torchvision.models import WeightsEnum
from torchvision.transforms._presets import ImageClassification

from service.errors import ModelUnavailable
from service.images import Preprocessing
from service.models.weights import DOWNLOAD_ERRORS, connection_timeout


@cache
def names() -> tuple[str, ...]:
    """Return every classifier that torchvision can build; not its quantised or detection models."""
    return tuple(models.list_models(module=models))


@cache
def published(name: str) -> tuple[str, ...]:
    """Return the names of the published weights of the classifier `name`, e.g. IMAGENET1K_V2."""
    members = models.get_model_weights(name).__members__
    # One published set (vgg16's IMAGENET1K_FEATURES) is a backbone without a classifier.
    return tuple(key for key, weights in members.items() if weights.meta["categories"])


@dataclass(frozen=True)
class Entry:
    """A classifier with one set of published weights, nothing downloaded yet."""

    name: str
    published: WeightsEnum
    labels: tuple[str, ...]
    preprocessing: Preprocessing

    @property
    def url(self) -> str:
        """Where the published weights are."""
        return str(self.published.url)

    def download(self) -> nn.Module:
        """Build the network with its published weights, from torch's cache or the network.

        Raises ModelUnavailable where they cannot be fetched or do not carry their hash.
        """
        try:
            with connection_timeout():
                return cast(nn.Module, models.get_model(self.name, weights=self.published, progress=True))
        except (*DOWNLOAD_ERRORS, RuntimeError, EOFError) as error:
            raise ModelUnavailable(f"{self.url} could not be fetched or read: {error}") from error

    def build(self, classes: int | None = None) -> nn.Module:
        """Build the network with random weights for `classes` classes (as published by default)."""
        options: dict[str, Any] = {"num_classes": classes or len(self.labels)}
        if self.name in ("googlenet", "inception_v3"):
            # Their published weights expect the input rescaled once more, which torchvision switches on
            # only when it loads them itself.
            options |= {"init_weights": False, "transform_input": True}
        return cast(nn.Module, models.get_model(self.name, weights=None, **options))


def entry(name: str, weights: str | None = None) -> Entry:
    """Look up the classifier `name` with its published `weights`, by default the best ones."""
    chosen = models.get_model_weights(name)[weights or "DEFAULT"]
    transform = cast(ImageClassification, chosen.transforms())
    return Entry(
        name=name,
        published=chosen,
        labels=tuple(chosen.meta["categories"]),
        preprocessing=Preprocessing(
            resize=transform.resize_size[0],
            crop=transform.crop_size[0],
            mean=_triple(transform.mean),
            std=_triple(transform.std),
            interpolation=transform.interpolation.value,
        ),
    )


def _triple(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue
