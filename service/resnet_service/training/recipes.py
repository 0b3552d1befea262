"""What a run starts from: a network with random or pretrained weights, and the recipe for it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import nn

from resnet_service.errors import ModelLoadError, TrainingError
from resnet_service.images import MAX_SIDE, Preprocessing
from resnet_service.models import catalog, checkpoint, load_weights, weights
from resnet_service.models.networks import NETWORKS
from resnet_service.training.trainer import TrainingConfig

RECIPES: Final = {
    "lenet": TrainingConfig(epochs=30, label_smoothing=0.0),
    "lenet-wide": TrainingConfig(),
    "cifar-resnet10": TrainingConfig(epochs=24),
    "cifar-resnet18": TrainingConfig(muon_lr=0.02, cutout=0.25),
}
"""docs/training.md has the accuracies. All other networks use one of the two recipes below."""

FROM_SCRATCH: Final = TrainingConfig(epochs=60, cutout=0.25, progressive=True)
FINE_TUNING: Final = TrainingConfig(epochs=10, batch_size=64, max_lr=0.01, weight_decay=1e-4)

_SMALL_IMAGE_VARIANTS: Final = {"resnet18": "cifar-resnet18"}
_SMALL_IMAGE_SIZE: Final = 64
"""The stem of a network for ImageNet shrinks images four times, which leaves too little of smaller ones."""


@dataclass(frozen=True)
class TrainingSetup:
    """A network to train, its input and its recipe.

    Attributes:
        network: its name in a checkpoint.
        preprocessing: of its input. With pretrained weights, mean and std are those of their training.
        recipe: hyperparameters for the network.
        pretrained: where its weights come from, None for random weights.
        needs_statistics: whether mean and std are unknown and must be computed from the data.

    """

    network: str
    preprocessing: Preprocessing
    recipe: TrainingConfig
    pretrained: str | None
    needs_statistics: bool
    _build: Callable[[int], nn.Module]

    def build(self, classes: int, *, frozen: bool = False) -> nn.Module:
        """Build the network for `classes` classes; if it is pretrained, with a new last layer.

        `frozen` excludes all but that layer from training. Raises ModelLoadError if the weights cannot be
        read or do not fit, or if the network does not support the size of the input.
        """
        network = self._build(classes)
        if self.pretrained is None:
            return network
        head = self._head_names(classes)
        state = dict(weights.load_state_dict(self.pretrained))
        if self.network in catalog.model_names():
            state = dict(catalog.get_spec(self.network).convert_state_dict(state))
        state |= {key: value for key, value in network.state_dict().items() if key in head}
        load_weights(network, state, self.network)
        for name, parameter in network.named_parameters():
            parameter.requires_grad = not frozen or name in head
        return network

    def _head_names(self, classes: int) -> set[str]:
        """Return the names of the tensors whose shape depends on the number of classes."""
        with torch.device("meta"):
            state, other = (self._build(count).state_dict() for count in (classes, classes + 1))
        return {key for key, value in state.items() if value.shape != other[key].shape}


def resolve_setup(
    network: str, *, weights_source: str | None = None, size: int | None = None
) -> TrainingSetup:
    """Return the setup for `network`: one of NETWORKS or a classifier of the catalog.

    `weights_source` is a path, an http(s) URL or the name of its published weights ("DEFAULT");
    None starts from random weights. `size` is the side of the input in pixels, by default the network's own.
    "resnet18" from random weights for up to 64 pixels is the variant for small images. Raises TrainingError
    for an unknown network.
    """
    if weights_source is None and (size or 0) <= _SMALL_IMAGE_SIZE:
        network = _SMALL_IMAGE_VARIANTS.get(network, network)
    pretrained = _load_checkpoint(weights_source)
    if network in NETWORKS:
        if weights_source == "DEFAULT":
            raise TrainingError(f"no published weights for {network}; use --weights FILE")
        default = pretrained.preprocessing if pretrained else _identity_preprocessing(32)
        return TrainingSetup(
            network,
            _rescale(default, size),
            recipe=FINE_TUNING if weights_source else RECIPES[network],
            pretrained=weights_source,
            needs_statistics=pretrained is None,
            _build=NETWORKS[network],
        )
    if network not in catalog.model_names():
        raise TrainingError(
            f"unknown network {network!r}; choose from {', '.join((*_SMALL_IMAGE_VARIANTS, *NETWORKS))}, "
            f"{catalog.EFFICIENTNET_LITE0}, or any torchvision classifier"
        )
    is_published = weights_source in catalog.published_weights(network)
    spec = catalog.get_spec(network, weights_source if is_published else None)
    if weights_source is None:
        preprocessing = _identity_preprocessing(size or spec.preprocessing.crop)
    else:
        preprocessing = _rescale(pretrained.preprocessing if pretrained else spec.preprocessing, size)
    return TrainingSetup(
        network,
        preprocessing,
        recipe=FROM_SCRATCH if weights_source is None else FINE_TUNING,
        pretrained=spec.source if is_published else weights_source,
        needs_statistics=weights_source is None,
        _build=replace(spec, preprocessing=preprocessing).build,
    )


def _load_checkpoint(source: str | None) -> checkpoint.Checkpoint | None:
    """Return `source` if it is a checkpoint of this project; None for other weights."""
    if source is None or not Path(source).is_file():
        return None
    try:
        return checkpoint.load_checkpoint(Path(source))
    except ModelLoadError:
        return None


def _identity_preprocessing(size: int) -> Preprocessing:
    """Return a resize and crop to `size` pixels without normalization."""
    return Preprocessing(resize=size, crop=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def _rescale(preprocessing: Preprocessing, size: int | None) -> Preprocessing:
    """Return `preprocessing` for another size, with the same share of the image cropped away."""
    if size is None:
        return preprocessing
    resize = min(MAX_SIDE, round(preprocessing.resize * size / preprocessing.crop))
    return replace(preprocessing, crop=size, resize=resize)
