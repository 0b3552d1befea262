"""ONNX files for tests: a small graph, correct or with one thing changed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

SIZE: Final = 32
PREPROCESSING: Final = {"resize": 40, "crop": SIZE, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
DESCRIPTION: Final = {"labels": ["red", "green"], "preprocessing": PREPROCESSING}


def small_graph(
    *,
    image: Sequence[int | str] = ("N", 3, SIZE, SIZE),
    output: Sequence[int | str] = ("N", 2),
    reshape: Sequence[int] = (-1, 3),
    classes: int = 2,
    image_type: int = TensorProto.FLOAT,
    opset: int = 17,
    softmax: bool = False,
) -> ModelProto:
    """Return a graph that compares the means of the red and the green channel of an image.

    `image` and `output` are declared shapes; `reshape` is the shape of the means before the product.
    """
    weights = np.eye(3, classes, dtype=np.float32)
    constants = [
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.array(reshape, np.int64), "flat"),
    ]
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["means"]),
        helper.make_node("Reshape", ["means", "flat"], ["channels"]),
        helper.make_node("MatMul", ["channels", "weights"], ["logits"]),
        helper.make_node("Softmax" if softmax else "Identity", ["logits"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", image_type, image)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, output)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def write(path: Path, proto: ModelProto, description: dict[str, Any] | None = None) -> Path:
    """Write a graph, and a JSON file with the description beside it unless it is empty; return `path`."""
    path.write_bytes(proto.SerializeToString())
    content = DESCRIPTION if description is None else description
    if content:
        path.with_suffix(".json").write_text(json.dumps(content), encoding="utf-8")
    return path
