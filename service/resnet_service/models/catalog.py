"""Torchvision's classifiers by name, with the labels and preprocessing of their published weights.

Nothing is downloaded here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, cast

from torch import Tensor, nn
from torchvision import models

from resnet_service.errors import ModelLoadError
from resnet_service.images import Preprocessing

_OLD_DENSENET_KEY: Final = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


@cache
def model_names() -> tuple[str, ...]:
    """Return the names of all classifiers in torchvision, without its quantized and detection models."""
    return tuple(models.list_models(module=models))


@cache
def published_weights(name: str) -> tuple[str, ...]:
    """Return the names of the published weights of the classifier `name`, such as IMAGENET1K_V2."""
    members = models.get_model_weights(name).__members__
    # vgg16's IMAGENET1K_FEATURES is a backbone without a classifier, hence without categories.
    return tuple(key for key, weights in members.items() if weights.meta["categories"])


@dataclass(frozen=True)
class ModelSpec:
    """A classifier and one set of published weights: their URL, labels and preprocessing."""

    name: str
    url: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing

    def build(self, classes: int | None = None) -> nn.Module:
        """Build the network with random weights for `classes` classes, by default as many as published.

        Sets the options that torchvision sets only when it loads published weights. Raises ModelLoadError if
        the network does not support the size of the input.
        """
        options: dict[str, Any] = {"num_classes": classes or len(self.labels)}
        if self.name in ("googlenet", "inception_v3"):
            options |= {"init_weights": False, "transform_input": True}
        if self.name.startswith("vit_"):
            options |= {"image_size": self.preprocessing.crop}
        try:
            return cast(nn.Module, models.get_model(self.name, weights=None, **options))
        except (AssertionError, ValueError) as error:
            size = self.preprocessing.crop
            raise ModelLoadError(f"{self.name} cannot be built for {size} pixels: {error}") from error

    def convert_state_dict(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Rename the keys of published densenet files, which follow an older version of PyTorch."""
        if not self.name.startswith("densenet"):
            return state
        return {_OLD_DENSENET_KEY.sub(r"\1\2", key): value for key, value in state.items()}


def get_spec(name: str, weights: str | None = None) -> ModelSpec:
    """Return the classifier `name` with its published `weights`, by default torchvision's DEFAULT."""
    published = models.get_model_weights(name)[weights or "DEFAULT"]
    transform = published.transforms()  # of every classifier: torchvision's ImageClassification
    return ModelSpec(
        name=name,
        url=published.url,
        labels=tuple(published.meta["categories"]),
        preprocessing=Preprocessing(
            resize=transform.resize_size[0],
            crop=transform.crop_size[0],
            mean=_rgb(transform.mean),
            std=_rgb(transform.std),
            interpolation=transform.interpolation.value,
        ),
    )


def _rgb(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue
