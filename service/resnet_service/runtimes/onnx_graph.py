"""Complete an ONNX graph for the runtimes: crops in, probabilities out, and embeddings where it has them."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

import numpy as np

from resnet_service.models import Model, ONNXModel
from resnet_service.runtimes.runtime import normalization

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

CROPS: Final = "resnet-service.crops"
PROBABILITIES: Final = "resnet-service.probabilities"
"""Names of the only input and of the first output."""
EMBEDDINGS: Final = "resnet-service.embeddings"
"""Name of the second output, if the graph has embeddings."""

_AFTER_CLASSIFIER: Final = frozenset(
    {"Add", "Cast", "DequantizeLinear", "Identity", "Mul", "QuantizeLinear", "Softmax"}
)
_UNCHANGED: Final = frozenset(
    {"DequantizeLinear", "Dropout", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze"}
)
"""Operations whose result has the same values, rounded if it is quantized."""


def end_to_end_graph(model: Model, *, with_embeddings: bool = False) -> bytes:
    """Return the graph of an ONNX model with normalization and softmax, serialized.

    Input [N, S, S, 3] uint8, output probabilities [N, classes] fp32, any N. Runtimes fuse the additions with
    the layers, and images reach the device as uint8, a quarter of the size. `with_embeddings` adds the output
    EMBEDDINGS [N, D] fp32, if a matrix product computes the logits.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    assert isinstance(model.program, ONNXModel)
    proto = onnx.load_model_from_string(model.program.graph)
    graph = proto.graph
    image, output = input_name(graph), graph.output[0].name
    mean, std = (values.numpy()[None].astype(np.float32) for values in normalization(model.preprocessing))
    prefix = "resnet-service."
    constants = [
        numpy_helper.from_array(mean, f"{prefix}mean"),
        numpy_helper.from_array(std, f"{prefix}std"),
    ]
    before = [
        helper.make_node("Transpose", [CROPS], [f"{prefix}transposed"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", [f"{prefix}transposed"], [f"{prefix}pixels"], to=TensorProto.FLOAT),
        helper.make_node("Sub", [f"{prefix}pixels", f"{prefix}mean"], [f"{prefix}centered"]),
        helper.make_node("Div", [f"{prefix}centered", f"{prefix}std"], [image]),
    ]
    is_complete = model.program.output == "probabilities"
    after = (
        helper.make_node("Identity", [output], [PROBABILITIES])
        if is_complete
        else helper.make_node("Softmax", [output], [PROBABILITIES], axis=1)
    )
    nodes = [*before, *graph.node, after]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    embeddings = _find_embeddings(graph, output, image) if with_embeddings else None
    others = [value for value in graph.input if value.name != image]
    size, classes = model.preprocessing.crop, len(model.labels)
    crops = helper.make_tensor_value_info(CROPS, TensorProto.UINT8, ["batch", size, size, 3])
    del graph.input[:], graph.output[:]
    graph.input.extend([crops, *others])
    graph.output.append(helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["batch", classes]))
    if embeddings is not None:
        flat = f"{prefix}flat"
        graph.node.append(helper.make_node("Flatten", [embeddings], [flat]))
        graph.node.append(helper.make_node("Cast", [flat], [EMBEDDINGS], to=TensorProto.FLOAT))
        graph.output.append(helper.make_tensor_value_info(EMBEDDINGS, TensorProto.FLOAT, ["batch", None]))
    serialized: bytes = proto.SerializeToString()
    return serialized


def input_name(graph: "GraphProto") -> str:
    """Return the name of the input of a checked graph; old files list constants as inputs, too."""
    constants = {tensor.name for tensor in graph.initializer}
    [image] = (value for value in graph.input if value.name not in constants)
    return str(image.name)


def _find_embeddings(graph: "GraphProto", output: str, image: str) -> str | None:
    """Return the tensor that the classifier multiplies by its weights, before it is quantized.

    `output` is the graph's own output, and `image` its input. None if another operation computes the output.
    """
    producers = {name: node for node in graph.node for name in node.output}
    variable = _dependent_tensors(graph, image)
    node = producers.get(output)
    while node is not None and node.op_type in _AFTER_CLASSIFIER:
        node = producers.get(_only_variable(node, variable) or "")
    if node is None or node.op_type not in ("Gemm", "MatMul") or _only_variable(node, variable) is None:
        return None
    if node.input[0] not in variable:  # the weights come first: the result has one column per image
        return None
    found = current = str(node.input[0])
    while (node := producers.get(current)) is not None and node.op_type in _UNCHANGED:
        current = str(node.input[0])
        if node.op_type == "QuantizeLinear":
            found = current
    return found


def _only_variable(node: "NodeProto", variable: Collection[str]) -> str | None:
    """Return the only input of a node that is not constant; None if there are several."""
    names = [name for name in node.input if name in variable]
    return names[0] if len(names) == 1 else None


def _dependent_tensors(graph: "GraphProto", image: str) -> set[str]:
    """Return the names of the tensors that depend on the image; the nodes are in topological order."""
    names = {image}
    for node in graph.node:
        if not names.isdisjoint(node.input):
            names.update(node.output)
    return names
