"""What a run starts from: a network with random or given weights, and the recipe that suits it."""

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
"""docs/training.md has what they come to. Other networks get one of the two below."""

FROM_SCRATCH: Final = TrainingConfig(epochs=60, cutout=0.25, progressive=True)
FINE_TUNING: Final = TrainingConfig(epochs=10, batch_size=64, max_lr=0.01, weight_decay=1e-4)

_SMALL: Final = {"resnet18": "cifar-resnet18"}
_SMALL_SIZE: Final = 64
"""Up to this side a network whose stem shrinks images four times would see next to nothing."""


@dataclass(frozen=True)
class TrainingSetup:
    """A network to be trained: its name in a checkpoint, how to build it, its input and its recipe.

    `pretrained` says where its weights come from, None for random ones. `preprocessing` has the mean and std
    they were trained with; where nobody knows, `unknown_statistics` says so, and those of the data serve.
    """

    network: str
    preprocessing: Preprocessing
    recipe: TrainingConfig
    pretrained: str | None
    unknown_statistics: bool
    _build: Callable[[int], nn.Module]

    def build(self, classes: int, *, frozen: bool = False) -> nn.Module:
        """Build the network for `classes` classes; where it is pretrained, its last layer is new.

        `frozen` leaves all but that layer as it is. Raises ModelLoadError where the weights cannot be had
        or do not fit, or the network does not exist for the size of the input.
        """
        network = self._build(classes)
        if self.pretrained is None:
            return network
        head = self._head(classes)
        state = dict(weights.load_state_dict(self.pretrained))
        if self.network in catalog.model_names():
            state = dict(catalog.get_spec(self.network).convert_state_dict(state))
        state |= {key: value for key, value in network.state_dict().items() if key in head}
        load_weights(network, state, self.network)
        for name, parameter in network.named_parameters():
            parameter.requires_grad = not frozen or name in head
        return network

    def _head(self, classes: int) -> set[str]:
        """Name the tensors whose shape depends on the number of classes."""
        with torch.device("meta"):
            ours, others = (self._build(count).state_dict() for count in (classes, classes + 1))
        return {key for key, value in ours.items() if value.shape != others[key].shape}


def resolve_setup(
    network: str, *, weights_source: str | None = None, size: int | None = None
) -> TrainingSetup:
    """Look up `network`: one of NETWORKS or a torchvision classifier.

    `weights_source` is a path, an http(s) URL or the name of a published set of torchvision's (DEFAULT).
    `size` is the side of the input in pixels, by default the network's own. A "resnet18" from scratch for up
    to 64 pixels is the one for small images. Raises TrainingError for an unknown network.
    """
    if weights_source is None and (size or 0) <= _SMALL_SIZE:
        network = _SMALL.get(network, network)
    trained = _checkpoint(weights_source)
    if network in NETWORKS:
        if weights_source == "DEFAULT":
            raise TrainingError(f"nobody has published weights of {network}; give --weights FILE")
        own = trained.preprocessing if trained else _identity_preprocessing(32)
        recipe = FINE_TUNING if weights_source else RECIPES[network]
        preprocessing = _rescale(own, size)
        return TrainingSetup(
            network, preprocessing, recipe, weights_source, trained is None, NETWORKS[network]
        )
    if network not in catalog.model_names():
        raise TrainingError(
            f"there is no network {network!r} to train; choose from {', '.join((*_SMALL, *NETWORKS))}, "
            "or any torchvision classifier"
        )
    published = weights_source in catalog.published_weights(network)
    entry = catalog.get_spec(network, weights_source if published else None)
    if weights_source is None:
        preprocessing, recipe, source = (
            _identity_preprocessing(size or entry.preprocessing.crop),
            FROM_SCRATCH,
            None,
        )
    else:
        preprocessing = _rescale(trained.preprocessing if trained else entry.preprocessing, size)
        recipe, source = FINE_TUNING, entry.url if published else weights_source
    entry = replace(entry, preprocessing=preprocessing)
    return TrainingSetup(network, preprocessing, recipe, source, weights_source is None, entry.build)


def _checkpoint(source: str | None) -> checkpoint.Checkpoint | None:
    """Return the checkpoint of ours that `source` is; None for other weights, which `TrainingSetup.build` reads."""
    if source is None or not Path(source).is_file():
        return None
    try:
        return checkpoint.load_checkpoint(Path(source))
    except ModelLoadError:
        return None


def _identity_preprocessing(size: int) -> Preprocessing:
    """Resize to `size` and crop to a square, whose mean and std are still to be found."""
    return Preprocessing(resize=size, crop=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def _rescale(own: Preprocessing, size: int | None) -> Preprocessing:
    """Return `own` for images of another size, with the same share cropped away."""
    if size is None:
        return own
    return replace(own, crop=size, resize=min(MAX_SIDE, round(own.resize * size / own.crop)))
