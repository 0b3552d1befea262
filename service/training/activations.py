"""Draw what the layers of a network see in a picture: one PNG grid of channels for each layer."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

from service.errors import TrainingImpossible
from service.files import replacing
from service.images import Crop
from service.models import Model
from service.training import record

USUAL_LAYERS = ("conv1", "conv2", "layer1", "layer2", "layer3")
"""Drawn by default where a network has them; layer4's maps are too small to see anything."""


def draw(model: Model, crop: Crop, out: Path, layers: Sequence[str] = ()) -> dict[Path, tuple[int, ...]]:
    """Write out/LAYER.png for each of `layers` and return each file with the shape [C, H, W] it shows.

    `layers` are names of modules; without them those of USUAL_LAYERS that the network has. Raises
    TrainingImpossible for an unknown layer, one whose output is no map, and a folder that cannot be written.
    """
    record.check_plotting()
    modules = dict(model.network.named_modules())
    chosen = list(layers) or [name for name in USUAL_LAYERS if name in modules]
    if unknown := [name for name in chosen if name not in modules] or ([] if chosen else ["conv1"]):
        known = ", ".join(name for name, _ in model.network.named_children())
        raise TrainingImpossible(
            f"{model.name} has no layer {unknown[0]!r}; it has {known} and what they hold"
        )
    seen: dict[str, Tensor] = {}
    hooks = [modules[name].register_forward_hook(partial(_keep, seen, name)) for name in chosen]
    try:
        _forward(model, crop)
    finally:
        for hook in hooks:
            hook.remove()
    files: dict[Path, tuple[int, ...]] = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in chosen:
            if name not in seen:
                raise TrainingImpossible(f"the output of {name!r} is no map of channels, height and width")
            path = out / f"{name}.png"
            _draw_grid(seen[name], f"{model.name} {name} {list(seen[name].shape)}", path)
            files[path] = tuple(seen[name].shape)
    except OSError as error:
        raise TrainingImpossible(f"{out} cannot be written: {error.strerror}") from error
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


def _draw_grid(maps: Tensor, title: str, path: Path) -> None:
    """Draw the maps [C, H, W] side by side, each stretched to its own range, with a scale of colours."""
    from matplotlib.figure import Figure

    columns = math.ceil(math.sqrt(len(maps)))
    grid = make_grid(
        maps[:, None], nrow=columns, padding=1, normalize=True, scale_each=True, pad_value=math.nan
    )[0]
    side = 8.0
    figure = Figure(figsize=(side, side * grid.shape[0] / grid.shape[1] + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(grid.numpy(), cmap="viridis", interpolation="nearest")
    axes.set_title(title)
    axes.set_axis_off()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
