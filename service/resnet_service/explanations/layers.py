"""Find the last layer of a network whose output still has places of the image.

Convolutional networks have outputs [1, C, H, W], Swin Transformers [1, H, W, C], and Vision Transformers
tokens [1, N, C]: one for each place, after up to eight others, such as the class token. All crops are square,
so H = W.
"""

from math import isqrt
from typing import Final

import torch
from torch import Tensor, nn

from resnet_service.errors import UnsupportedModelError

_MAX_OTHER_TOKENS: Final = 8
_FAMILIES: Final = (
    "convolutional networks (ResNet, EfficientNet, MobileNet, DenseNet, VGG, SqueezeNet, ConvNeXt and "
    "others), Vision Transformers and Swin Transformers"
)


class GridView(nn.Module):
    """Returns the output of a layer as [1, C, H, W]: what Grad-CAM of convolutional networks takes."""

    def forward(self, output: Tensor) -> Tensor:
        """Return the grid of an output that has one."""
        grid = _to_grid(output)
        assert grid is not None
        return grid


def attach_grid_view(network: nn.Module, size: int) -> GridView:
    """Find the last layer with places, let its output pass through a view from now on, and return the view.

    `network` takes [1, 3, size, size] and its parameters need no gradients. The layer is the last one whose
    places influence the best class; those of a Vision Transformer's last block do not, because only its class
    token is used. A pass with noise finds it. Raises UnsupportedModelError without such a layer.
    """
    noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    device = next(network.parameters()).device
    scores, outputs = _record_outputs(network, noise.to(device).requires_grad_())
    if outputs:
        gradients = torch.autograd.grad(scores.max(), list(outputs.values()), allow_unused=True)
        for layer, gradient in reversed(list(zip(outputs, gradients, strict=True))):
            grid = None if gradient is None else _to_grid(gradient)
            if grid is not None and grid.any():
                return _attach(layer)
    raise UnsupportedModelError(
        f"the network {type(network).__name__} cannot be explained: no layer whose output has height and "
        f"width leads to its classes; use one of {_FAMILIES}"
    )


def _record_outputs(network: nn.Module, images: Tensor) -> tuple[Tensor, dict[nn.Module, Tensor]]:
    """Run a network; return its output, and those of its modules that have places, in order of their end.

    Modules that run more than once are left out.
    """
    outputs: dict[nn.Module, Tensor] = {}
    repeated: set[nn.Module] = set()

    def record(module: nn.Module, _: object, output: object) -> None:
        if module in outputs:
            repeated.add(module)
        if isinstance(output, Tensor) and _to_grid(output) is not None:
            outputs[module] = output

    hooks = [module.register_forward_hook(record) for module in network.modules() if module is not network]
    try:
        scores = network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return scores, {module: output for module, output in outputs.items() if module not in repeated}


def _attach(layer: nn.Module) -> GridView:
    view = GridView()

    def pass_through(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return _from_grid(view(output), output)

    layer.register_forward_hook(pass_through)
    return view


def _to_grid(output: Tensor) -> Tensor | None:
    """Return an output as [1, C, H, W]; None if it has no places."""
    if output.dim() == 4:
        _, second, third, last = output.shape
        if third == last > 1:
            return output
        return output.permute(0, 3, 1, 2) if second == third > 1 else None
    if output.dim() == 3:
        side = isqrt(output.shape[1])
        others = output.shape[1] - side * side
        if side > 1 and others <= _MAX_OTHER_TOKENS:
            places: Tensor = output[:, others:].transpose(1, 2)
            return places.reshape(1, -1, side, side)
    return None


def _from_grid(grid: Tensor, output: Tensor) -> Tensor:
    """Return what `grid` is the view of, in the layout of `output`."""
    if output.dim() == 3:
        tokens = grid.flatten(2).transpose(1, 2)
        return torch.cat([output[:, : output.shape[1] - tokens.shape[1]], tokens], 1)
    return grid if grid.shape == output.shape else grid.permute(0, 2, 3, 1)
