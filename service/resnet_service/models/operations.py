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
_ONNX_WEIGHT_INPUTS: Final = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}
"""Convolutions of ONNX, and which of their inputs are the weights."""

_ONNX_PRODUCTS: Final = ("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul")


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


def count_onnx_operations(graph: bytes) -> int:
    """Count those of an ONNX graph whose input [N, 3, S, S] has a fixed S. Needs the package onnx."""
    import onnx

    model = onnx.load_model_from_string(graph)
    constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in constants:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = constants | {
        value.name: tuple(max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim)
        for value in chain(inferred.input, inferred.value_info, inferred.output)
        if value.name not in constants
    }
    total = 0
    for node in model.graph.node:
        if node.op_type in _ONNX_WEIGHT_INPUTS:
            weights = shapes.get(node.input[_ONNX_WEIGHT_INPUTS[node.op_type]], ())
            total += 2 * prod(shapes.get(node.output[0], ())) * prod(weights[1:])
        elif node.op_type in _ONNX_PRODUCTS:
            is_transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
            [length] = shapes.get(node.input[0], (1,))[0 if is_transposed else -1 :][:1]
            total += 2 * prod(shapes.get(node.output[0], ())) * length
    return total
