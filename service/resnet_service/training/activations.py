"""Draw what the layers of a network see in an image: one PNG grid of channels for each layer."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnet_service.errors import TrainingError
from resnet_service.images import Crop
from resnet_service.models import Model
from resnet_service.training import require_plots

USUAL_LAYERS = ("conv1", "conv2", "layer1", "layer2", "layer3")
"""Drawn by default where a network has them; layer4's maps are too small to see anything."""


def draw(model: Model, crop: Crop, out: Path, layers: Sequence[str] = ()) -> dict[Path, tuple[int, ...]]:
    """Write out/LAYER.png for each of `layers` and return each file with the shape [C, H, W] it shows.

    `layers` are names of modules; without them those of USUAL_LAYERS that the network has. Raises
    TrainingError for an unknown layer, one whose output is no map, and a folder that cannot be written.
    """
    require_plots()
    from resnet_service.training import plots

    modules = dict(model.network.named_modules())
    chosen = list(layers) or [name for name in USUAL_LAYERS if name in modules]
    children = ", ".join(name for name, _ in model.network.named_children())
    if not chosen:
        raise TrainingError(f"{model.name} has none of the usual layers; give --layer, one of {children}")
    if unknown := [name for name in chosen if name not in modules]:
        raise TrainingError(f"{model.name} has no layer {unknown[0]!r}; it has {children} and what they hold")
    seen: dict[str, Tensor] = {}
    hooks = [modules[name].register_forward_hook(partial(_keep, seen, name)) for name in chosen]
    try:
        _forward(model, crop)
    finally:
        for hook in hooks:
            hook.remove()
    if flat := [name for name in chosen if name not in seen]:
        raise TrainingError(f"the output of {flat[0]!r} is no map of channels, height and width")
    if flat := [name for name in chosen if name not in seen]:
        raise TrainingError(f"the output of {flat[0]!r} is no map of channels, height and width")
    files: dict[Path, tuple[int, ...]] = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in chosen:
            path = out / f"{name}.png"
            plots.channels(seen[name], f"{model.name} {name} {list(seen[name].shape)}", path)
            files[path] = tuple(seen[name].shape)
    except OSError as error:
        raise TrainingError(f"{out} cannot be written: {error.strerror}") from error
    return files


def _keep(seen: dict[str, Tensor], name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
    if isinstance(output, Tensor) and output.dim() == 4:
        seen[name] = output[0].clone()  # a ReLU after it may work in place


@torch.inference_mode()
def _forward(model: Model, crop: Crop) -> None:
    pixels = torch.tensor(crop).permute(2, 0, 1) / 255
    mean = torch.tensor(model.preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(model.preprocessing.std).view(3, 1, 1)
    model.network(((pixels - mean) / std)[None])
