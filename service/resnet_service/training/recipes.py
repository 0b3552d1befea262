"""What a run starts from: a network with random weights or those of a model, and the recipe for it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import nn

from resnet_service.errors import TrainingError
from resnet_service.images import MAX_SIDE, Preprocessing
from resnet_service.models import catalog, load_weights, weights
from resnet_service.models.networks import NETWORKS
from resnet_service.training.initial_weights import InitialWeights, find_weights
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

_DEFAULT_NETWORK: Final = "resnet18"
_SMALL_IMAGE_VARIANTS: Final = {"resnet18": "cifar-resnet18"}
_SMALL_IMAGE_SIZE: Final = 64
"""The stem of a network for ImageNet shrinks images four times, which leaves too little of smaller ones."""


@dataclass(frozen=True)
class TrainingSetup:
    """A network to train, its input and its recipe.

    Attributes:
        network: its name in a checkpoint.
        preprocessing: of its input. With initial weights, mean and std are those of their training.
        recipe: hyperparameters for the network.
        weights: the initial weights, None for random ones.
        needs_statistics: whether mean and std are unknown and must be computed from the data.

    """

    network: str
    preprocessing: Preprocessing
    recipe: TrainingConfig
    weights: InitialWeights | None
    needs_statistics: bool
    _build: Callable[[int], nn.Module]

    def build(self, classes: int, *, frozen: bool = False) -> nn.Module:
        """Build the network for `classes` classes; if it has initial weights, with a new last layer.

        `frozen` excludes all but that layer from training. Raises ModelLoadError if the weights cannot be
        read or do not fit, or if the network does not support the size of the input.
        """
        network = self._build(classes)
        if self.weights is None:
            return network
        head = self._head_names(classes)
        state = dict(weights.load_state_dict(self.weights.source))
        if self.network in catalog.model_names():
            state = dict(catalog.get_spec(self.network).convert_state_dict(state))
        state |= {key: value for key, value in network.state_dict().items() if key in head}
        load_weights(network, state, self.network)
        for name, parameter in network.named_parameters():
            parameter.requires_grad = not frozen or name in head
        return network

    def _head_names(self, classes: int) -> set[str]:
        """Return the names of the tensors whose shape depends on the number of classes."""
        state, other = (self._build_without_values(count).state_dict() for count in (classes, classes + 1))
        return {key for key, value in state.items() if value.shape != other[key].shape}

    def _build_without_values(self, classes: int) -> nn.Module:
        try:
            with torch.device("meta"):
                return self._build(classes)
        except NotImplementedError:  # RegNets compute with values of tensors while they are built
            return self._build(classes)


def resolve_setup(
    network: str | None = None, *, weights_source: str | None = None, size: int | None = None
) -> TrainingSetup:
    """Return the setup for `network`: one of NETWORKS or a classifier of the catalog.

    `weights_source` is what `find_weights` accepts; None starts from random weights. `network` is by default
    that of the weights, or "resnet18". `size` is the side of the input in pixels, by default the network's
    own. "resnet18" from random weights for up to 64 pixels is the variant for small images. Raises
    TrainingError for an unknown network, and for weights that are unknown or of another network.
    """
    if weights_source is not None:
        initial = find_weights(weights_source, network)
        if network is not None and initial.network not in (network, _SMALL_IMAGE_VARIANTS.get(network)):
            raise TrainingError(
                f"the network of --weights {weights_source} is {initial.network}, not {network}; "
                "leave out --network"
            )
        preprocessing = _rescale(initial.preprocessing or _identity_preprocessing(32), size)
        return TrainingSetup(
            initial.network,
            preprocessing,
            recipe=FINE_TUNING,
            weights=initial,
            needs_statistics=initial.preprocessing is None,
            _build=_builder(initial.network, preprocessing),
        )
    network = network or _DEFAULT_NETWORK
    if (size or 0) <= _SMALL_IMAGE_SIZE:
        network = _SMALL_IMAGE_VARIANTS.get(network, network)
    if network not in NETWORKS and size is None and network in catalog.model_names():
        size = catalog.get_spec(network).preprocessing.crop
    preprocessing = _identity_preprocessing(size or 32)
    return TrainingSetup(
        network,
        preprocessing,
        recipe=RECIPES.get(network, FROM_SCRATCH),
        weights=None,
        needs_statistics=True,
        _build=_builder(network, preprocessing),
    )


def _builder(network: str, preprocessing: Preprocessing) -> Callable[[int], nn.Module]:
    """Return the function that builds `network` for a number of classes."""
    if network in NETWORKS:
        return NETWORKS[network]
    if network not in catalog.model_names():
        raise TrainingError(
            f"unknown network {network!r}; choose from {', '.join((*_SMALL_IMAGE_VARIANTS, *NETWORKS))}, "
            f"{catalog.EFFICIENTNET_LITE0}, or any torchvision classifier"
        )
    return replace(catalog.get_spec(network), preprocessing=preprocessing).build


def _identity_preprocessing(size: int) -> Preprocessing:
    """Return a resize and crop to `size` pixels without normalization."""
    return Preprocessing(resize=size, crop=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def _rescale(preprocessing: Preprocessing, size: int | None) -> Preprocessing:
    """Return `preprocessing` for another size, with the same share of the image cropped away."""
    if size is None:
        return preprocessing
    resize = min(MAX_SIDE, round(preprocessing.resize * size / preprocessing.crop))
    return replace(preprocessing, crop=size, resize=resize)
