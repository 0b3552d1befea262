"""Count the floating-point operations of a model for one image; a multiply-add counts as two."""

from itertools import chain
from math import prod
from typing import Final
from xml.etree import ElementTree as ET

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

_COUNTED_LAYERS: Final = ("Convolution", "GroupConvolution", "MatMul")


def count_network_operations(network: nn.Module, side: int) -> int:
    """Count those of a network that takes [1, 3, side, side], without memory or time for its values."""
    named = chain(network.named_parameters(), network.named_buffers())
    shapes = {name: tensor.to("meta") for name, tensor in named}
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        functional_call(network, shapes, torch.zeros(1, 3, side, side, device="meta"))
    total: int = counter.get_total_flops()
    return total


def count_openvino_operations(topology: bytes) -> int:
    """Count those of an OpenVINO model's XML file."""
    total = 0
    for layer in ET.fromstring(topology).iter("layer"):  # noqa: S314, a file of the operator
        if (kind := layer.get("type")) in _COUNTED_LAYERS:
            # The size of the batch is -1.
            shapes = [[max(1, int(dim.text or 1)) for dim in port.iter("dim")] for port in layer.iter("port")]
            inputs, weights, outputs = shapes
            per_output = {"Convolution": weights[1:], "GroupConvolution": weights[2:], "MatMul": inputs[-1:]}
            total += 2 * prod(outputs) * prod(per_output[kind])
    return total
