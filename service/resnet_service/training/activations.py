"""Draw the feature maps of a network's layers for one image: a PNG grid of channels per layer."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from resnet_service.errors import InputError, StorageError, UnsupportedModelError
from resnet_service.images import Crop
from resnet_service.models import Model

DEFAULT_LAYERS: Final = ("conv1", "conv2", "layer1", "layer2", "layer3")
"""Drawn by default if the network has them; the maps of layer4 are too small to show anything."""


def draw_activations(
    model: Model, crop: Crop, folder: Path, layers: Sequence[str] = ()
) -> dict[Path, tuple[int, ...]]:
    """Write folder/LAYER.png for each layer and return the shape [C, H, W] of the maps in each file.

    `layers` are names of modules; by default those of DEFAULT_LAYERS that the network has. Raises
    InputError for an unknown layer or one whose output is not [N, C, H, W], UnsupportedModelError if the
    network has none of the default layers, and StorageError if the folder cannot be written. Needs
    matplotlib: call `require_plots` first.
    """
    from resnet_service.training import plots

    modules = dict(model.network.named_modules())
    names = list(layers) or [name for name in DEFAULT_LAYERS if name in modules]
    children = ", ".join(name for name, _ in model.network.named_children())
    if not names:
        raise UnsupportedModelError(
            f"{model.name} has none of the default layers; choose one with --layer: {children}"
        )
    if unknown := [name for name in names if name not in modules]:
        raise InputError(f"{model.name} has no layer {unknown[0]!r}; it has {children} and their submodules")
    maps: dict[str, Tensor] = {}
    hooks = [modules[name].register_forward_hook(partial(_store, maps, name)) for name in names]
    try:
        _forward(model, crop)
    finally:
        for hook in hooks:
            hook.remove()
    if without_maps := [name for name in names if name not in maps]:
        raise InputError(f"the output of {without_maps[0]!r} does not have channels, height and width")
    files: dict[Path, tuple[int, ...]] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            path = folder / f"{name}.png"
            plots.channels(maps[name], f"{model.name}, {name}", path)
            files[path] = tuple(maps[name].shape)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}") from error
    return files


def _store(maps: dict[str, Tensor], name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
    if isinstance(output, Tensor) and output.dim() == 4:
        maps[name] = output[0].clone()  # a ReLU after it may work in place


@torch.inference_mode()
def _forward(model: Model, crop: Crop) -> None:
    pixels = torch.tensor(crop).permute(2, 0, 1) / 255
    mean = torch.tensor(model.preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(model.preprocessing.std).view(3, 1, 1)
    model.network(((pixels - mean) / std)[None])
