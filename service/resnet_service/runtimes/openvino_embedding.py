"""Find the embedding in an OpenVINO model: the input of the classifier, before it is quantized."""

from collections.abc import Collection
from typing import Final

import openvino as ov
from openvino import opset13 as ops

NAME: Final = "resnet-service.embedding"
"""The name of the output with the embeddings."""

_AFTER_CLASSIFIER: Final = frozenset({"Result", "Softmax", "Add", "Multiply", "Convert", "Identity"})
"""Layers between the product and the output; ONNX's Gemm multiplies the product by a constant."""
_QUANTIZING: Final = frozenset({"FakeQuantize", "Convert", "Subtract", "Multiply"})
"""Quantization as one layer, and the layers of ONNX's DequantizeLinear after it."""
_RESHAPING: Final = frozenset({"Reshape", "Squeeze"})


def add_embedding_output(model: ov.Model) -> None:
    """Add the embeddings [N, D] fp32 as the second output, if a matrix product computes the model's logits.

    Models that are quantized already get the output as well: their files do not have it.
    """
    variable = _variable_nodes(model)
    source = _classifier_input(model, variable)
    if source is None:
        return
    source = _before_quantization(source, variable)
    shape = source.get_partial_shape()
    if shape.rank.is_dynamic or any(dimension.is_dynamic for dimension in list(shape)[1:]):
        return
    sizes = [dimension.get_length() for dimension in list(shape)[1:]]
    if not sizes or any(size != 1 for size in sizes[1:]):
        return
    if len(sizes) > 1:
        source = ops.reshape(source, [0, sizes[0]], special_zero=True).output(0)  # 0: the size of the batch
    if source.get_element_type() != ov.Type.f32:  # a graph can be fp32 outside and fp16 within
        source = ops.convert(source, "f32").output(0)
    [added] = model.add_outputs(source)
    added.get_tensor().add_names({NAME})


def embedding_size(model: ov.CompiledModel) -> int | None:
    """Return the length of an embedding; None if the model has no such output."""
    for output in model.outputs:
        if NAME in output.get_names():
            return int(output.get_partial_shape()[1].get_length())
    return None


def _classifier_input(model: ov.Model, variable: Collection[str]) -> ov.Output | None:
    """Return the tensor that the last layer multiplies by its weights; None if that layer is another one."""
    node = model.outputs[0].get_node()
    while node.get_type_name() in _AFTER_CLASSIFIER:
        inputs = [value for value in node.input_values() if not _is_constant(value, variable)]
        if len(inputs) != 1:
            return None
        node = inputs[0].get_node()
    if node.get_type_name() != "MatMul":
        return None
    values, weights = node.input_values()
    return None if _is_constant(values, variable) or not _is_constant(weights, variable) else values


def _before_quantization(source: ov.Output, variable: Collection[str]) -> ov.Output:
    """Return the tensor of which `source` is a quantized copy, possibly of another shape; else `source`."""
    current = source
    while True:
        node = current.get_node()
        kind = node.get_type_name()
        if kind not in _QUANTIZING | _RESHAPING:
            return source
        if not all(_is_constant(value, variable) for value in node.input_values()[1:]):
            return source
        current = node.input_value(0)
        if kind == "FakeQuantize":
            return current


def _is_constant(value: ov.Output, variable: Collection[str]) -> bool:
    """Return whether a tensor does not depend on the model's input, as weights that are quantized."""
    return value.get_node().get_name() not in variable


def _variable_nodes(model: ov.Model) -> set[str]:
    """Return the unique names of the nodes that depend on the model's input.

    In one pass from the first to the last: networks are deeper than Python's limit on recursion.
    """
    names: set[str] = set()
    for node in model.get_ordered_ops():
        inputs = (value.get_node().get_name() for value in node.input_values())
        if node.get_type_name() == "Parameter" or not names.isdisjoint(inputs):
            names.add(node.get_name())
    return names
