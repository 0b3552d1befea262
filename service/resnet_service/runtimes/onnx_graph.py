"""Complete an ONNX graph for the runtimes: crops in, probabilities out."""

from typing import TYPE_CHECKING, Final

import numpy as np

from resnet_service.models import Model, ONNXModel
from resnet_service.runtimes.runtime import normalization

if TYPE_CHECKING:
    from onnx import GraphProto

CROPS: Final = "resnet-service.crops"
PROBABILITIES: Final = "resnet-service.probabilities"
"""Names of the only input and the only output."""


def end_to_end_graph(model: Model) -> bytes:
    """Return the graph of an ONNX model with normalization and softmax, serialized.

    Input [N, S, S, 3] uint8, output probabilities [N, classes] fp32, any N. Runtimes fuse the additions with
    the layers, and images reach the device as uint8, a quarter of the size.
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
    others = [value for value in graph.input if value.name != image]
    size, classes = model.preprocessing.crop, len(model.labels)
    crops = helper.make_tensor_value_info(CROPS, TensorProto.UINT8, ["batch", size, size, 3])
    del graph.input[:], graph.output[:]
    graph.input.extend([crops, *others])
    graph.output.append(helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["batch", classes]))
    serialized: bytes = proto.SerializeToString()
    return serialized


def input_name(graph: "GraphProto") -> str:
    """Return the name of the input of a checked graph; old files list constants as inputs, too."""
    constants = {tensor.name for tensor in graph.initializer}
    [image] = (value for value in graph.input if value.name not in constants)
    return str(image.name)
