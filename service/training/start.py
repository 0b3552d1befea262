"""What a run starts from: a network with random or given weights, and the recipe that suits it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import nn

from service import models
from service.errors import ModelUnavailable, TrainingImpossible
from service.images import MAX_SIDE, Preprocessing
from service.models import catalog, checkpoint, weights
from service.models.networks import NETWORKS
from service.training.loop import Options

RECIPES: Final = {
    "lenet": Options(epochs=30, label_smoothing=0.0),
    "lenet-wide": Options(),
    "cifar-resnet10": Options(epochs=24),
    "cifar-resnet18": Options(muon_lr=0.02, cutout=0.25),
}
"""docs/training.md has what they come to. Other networks get one of the two below."""

FROM_SCRATCH: Final = Options(epochs=60, cutout=0.25, progressive=True)
FINE_TUNING: Final = Options(epochs=10, batch_size=64, max_lr=0.01, weight_decay=1e-4)

_SMALL: Final = {"resnet18": "cifar-resnet18"}
_SMALL_SIZE: Final = 64
"""Up to this side a network whose stem shrinks pictures four times would see next to nothing."""


@dataclass(frozen=True)
class Start:
    """A network to be trained: its name in a checkpoint, how to build it, its input and its recipe.

    `pretrained` says where its weights come from, None for random ones. `preprocessing` has the mean and std
    they were trained with; where nobody knows, `unknown_statistics` says so, and those of the data serve.
    """

    network: str
    preprocessing: Preprocessing
    recipe: Options
    pretrained: str | None
    unknown_statistics: bool
    _build: Callable[[int], nn.Module]

    def build(self, classes: int, *, frozen: bool = False) -> nn.Module:
        """Build the network for `classes` classes; where it is pretrained, its last layer is new.

        `frozen` leaves all but that layer as it is. Raises ModelUnavailable where the weights cannot be had
        or do not fit, or the network does not exist for the size of the input.
        """
        network = self._build(classes)
        if self.pretrained is None:
            return network
        head = self._head(classes)
        state = dict(weights.read_state(self.pretrained))
        if self.network in catalog.names():
            state = dict(catalog.entry(self.network).adapt(state))
        state |= {key: value for key, value in network.state_dict().items() if key in head}
        models.fill(network, state, self.network)
        for name, parameter in network.named_parameters():
            parameter.requires_grad = not frozen or name in head
        return network

    def _head(self, classes: int) -> set[str]:
        """Name the tensors whose shape depends on the number of classes."""
        with torch.device("meta"):
            ours, others = (self._build(count).state_dict() for count in (classes, classes + 1))
        return {key for key, value in ours.items() if value.shape != others[key].shape}


def start(network: str, *, weights_source: str | None = None, size: int | None = None) -> Start:
    """Look up `network`: one of NETWORKS or a torchvision classifier.

    `weights_source` is a path, an http(s) URL or the name of a published set of torchvision's (DEFAULT).
    `size` is the side of the input in pixels, by default the network's own. A "resnet18" from scratch for up
    to 64 pixels is the one for small pictures. Raises TrainingImpossible for an unknown network.
    """
    if weights_source is None and (size or 0) <= _SMALL_SIZE:
        network = _SMALL.get(network, network)
    trained = _checkpoint(weights_source)
    if network in NETWORKS:
        if weights_source == "DEFAULT":
            raise TrainingImpossible(f"nobody has published weights of {network}; give --weights FILE")
        own = trained.preprocessing if trained else _plain(32)
        recipe = FINE_TUNING if weights_source else RECIPES[network]
        preprocessing = _scaled(own, size)
        return Start(network, preprocessing, recipe, weights_source, trained is None, NETWORKS[network])
    if network not in catalog.names():
        raise TrainingImpossible(
            f"there is no network {network!r} to train; choose from {', '.join((*_SMALL, *NETWORKS))}, "
            "or any torchvision classifier"
        )
    published = weights_source in catalog.published(network)
    entry = catalog.entry(network, weights_source if published else None)
    if weights_source is None:
        preprocessing, recipe, source = _plain(size or entry.preprocessing.crop), FROM_SCRATCH, None
    else:
        preprocessing = _scaled(trained.preprocessing if trained else entry.preprocessing, size)
        recipe, source = FINE_TUNING, entry.url if published else weights_source
    entry = replace(entry, preprocessing=preprocessing)
    return Start(network, preprocessing, recipe, source, weights_source is None, entry.build)


def _checkpoint(source: str | None) -> checkpoint.Checkpoint | None:
    """Return the checkpoint of ours that `source` is; None for other weights, which `Start.build` reads."""
    if source is None or not Path(source).is_file():
        return None
    try:
        return checkpoint.load(Path(source))
    except ModelUnavailable:
        return None


def _plain(size: int) -> Preprocessing:
    """Resize to `size` and crop to a square, whose mean and std are still to be found."""
    return Preprocessing(resize=size, crop=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def _scaled(own: Preprocessing, size: int | None) -> Preprocessing:
    """Return `own` for pictures of another size, with the same share cropped away."""
    if size is None:
        return own
    return replace(own, crop=size, resize=min(MAX_SIDE, round(own.resize * size / own.crop)))
