"""ONNX files: a graph, with the labels, the preprocessing and the kind of output that serving it requires.

These three are in the file's metadata, as JSON under the keys `resnet-service.labels`, `.preprocessing` and
`.output`, or in a JSON file beside it (cat.json beside cat.onnx) with the keys `labels`, `preprocessing` and
`output`; the JSON file has priority. ONNX files contain no code, so untrusted files are safe to read.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from resnet_service.errors import MissingDependencyError, ModelLoadError, first_line
from resnet_service.files import atomic_write
from resnet_service.images import Preprocessing
from resnet_service.models.model import Model, ONNXModel

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

SUFFIX: Final = ".onnx"

_KEY_PREFIX: Final = "resnet-service."
_MIN_OPSET: Final = 7
"""The first one in which arithmetic broadcasts; runtimes add the normalization with it."""

_QUANTIZED_NODES: Final = frozenset(
    {
        *("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"),
        *("ConvInteger", "MatMulInteger"),
    }
)
_EXAMPLE: Final = {
    "labels": ["cat", "dog"],
    "preprocessing": {
        "resize": 256,
        "crop": 224,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
    },
}


class _Description(BaseModel):
    """What a graph does not contain. `output` is what its output is, before or after a softmax."""

    model_config = ConfigDict(extra="forbid", strict=True)

    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    preprocessing: Preprocessing
    output: Literal["logits", "probabilities"] = "logits"


def require_onnx() -> None:
    """Raise MissingDependencyError if the package onnx is not installed."""
    if find_spec("onnx") is None:
        raise MissingDependencyError("ONNX files require the package onnx: make install EXTRAS=onnx")


def load_onnx(name: str, path: Path) -> Model:
    """Read an ONNX file as the model `name`.

    Its input must be [N, 3, S, S] float32 and its output [N, classes] float32. A fixed N becomes a variable
    one if the graph allows it. Raises ModelLoadError with what the file contains and what helps, and
    MissingDependencyError if the package onnx is not installed.
    """
    require_onnx()
    proto = _read(path)
    description = _describe(proto, path)
    return create_model(
        name, proto, description.labels, description.preprocessing, description.output, path.name
    )


def save_onnx(model: Model, path: Path) -> None:
    """Write a model whose program is an ONNX graph, with its metadata, atomically. Raises OSError."""
    import onnx

    assert isinstance(model.program, ONNXModel)
    proto = onnx.load_model_from_string(model.program.graph)
    description = {
        "labels": model.labels,
        "preprocessing": asdict(model.preprocessing),
        "output": model.program.output,
    }
    others = {prop.key: prop.value for prop in proto.metadata_props}
    own = {f"{_KEY_PREFIX}{key}": json.dumps(value) for key, value in description.items()}
    onnx.helper.set_model_props(proto, others | own)
    with atomic_write(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())


def count_nodes(program: ONNXModel) -> tuple[Mapping[str, int], int]:
    """Return how many nodes of each type a graph has, and how many floating-point constants."""
    import onnx

    graph = onnx.load_model_from_string(program.graph).graph
    nodes = Counter(node.op_type for node in graph.node)
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    constants = sum(prod(tensor.dims) for tensor in graph.initializer if tensor.data_type in floats)
    return dict(nodes.most_common()), constants


def create_model(
    name: str,
    proto: "ModelProto",
    labels: tuple[str, ...],
    preprocessing: Preprocessing,
    output: Literal["logits", "probabilities"],
    source: str,
) -> Model:
    """Check a graph against its labels and its preprocessing, and return both as a model.

    `proto` is changed: the size of its batch becomes variable. Raises ModelLoadError.
    """
    from google.protobuf.message import EncodeError

    _make_batch_variable(proto, preprocessing.crop, len(labels))
    is_quantized = any(node.op_type in _QUANTIZED_NODES for node in proto.graph.node)
    try:
        program = ONNXModel(proto.SerializeToString(), output, is_quantized)
    except (EncodeError, ValueError) as error:
        raise ModelLoadError(
            f"the graph and its weights are larger than 2 GB: {first_line(error)}"
        ) from error
    return Model(name, program, labels, preprocessing, source)


def _read(path: Path) -> "ModelProto":
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load_model(path, load_external_data=False)
    except FileNotFoundError as error:
        raise ModelLoadError(f"file not found: {path}") from error
    except (DecodeError, OSError) as error:
        raise ModelLoadError(f"{path} is not a readable ONNX file: {first_line(error)}") from error
    if not proto.graph.node:
        raise ModelLoadError(f"{path} is not an ONNX file, or its graph is empty")
    opset = max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    newest = onnx.defs.onnx_opset_version()
    if not _MIN_OPSET <= opset <= newest:
        raise ModelLoadError(
            f"{path} uses opset {opset} of ONNX, and this installation reads {_MIN_OPSET} to {newest}: "
            "export it with another opset" + (", or update the package onnx" if opset > newest else "")
        )
    try:
        onnx.load_external_data_for_model(proto, str(path.absolute().parent))
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise ModelLoadError(
            f"the weights of {path} are in another file, which must lie beside it: {first_line(error)}"
        ) from error
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError) as error:  # ValueError: larger than 2 GB
        raise ModelLoadError(f"{path} is not a valid ONNX file: {first_line(error)}") from error
    return proto


def _describe(proto: "ModelProto", path: Path) -> _Description:
    """Return the labels, the preprocessing and the output of a file. Raises ModelLoadError."""
    beside = path.with_suffix(".json")
    content: dict[str, Any] = {
        prop.key.removeprefix(_KEY_PREFIX): _parse(prop.value, f"{prop.key} in the metadata of {path}")
        for prop in proto.metadata_props
        if prop.key.startswith(_KEY_PREFIX)
    }
    has_file = beside.exists()
    if has_file:
        try:
            text = beside.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelLoadError(f"{beside} cannot be read: {first_line(error)}") from error
        own = _parse(text, str(beside))
        if not isinstance(own, Mapping):
            raise ModelLoadError(f"{beside} is not a JSON object such as {json.dumps(_EXAMPLE)}")
        content |= own
    if missing := [key for key in ("labels", "preprocessing") if key not in content]:
        where = f"{beside} does not contain them" if has_file else f"{beside} does not exist"
        raise ModelLoadError(
            f"{path} needs {' and '.join(missing)}: its metadata does not contain them, and {where}. Write "
            f"this file like {json.dumps(_EXAMPLE)}"
        )
    try:
        return _Description.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        source = f"{beside} or the metadata of {path}" if has_file else f"the metadata of {path}"
        raise ModelLoadError(f"{field} in {source} is invalid: {first['msg']}") from error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ModelLoadError(f"{where} is not JSON: {error}") from error


def _make_batch_variable(proto: "ModelProto", size: int, classes: int) -> None:
    """Check the input and the output of a graph, and make the size of its batch variable.

    The shape of the output is computed for a batch of another size, because files declare shapes that their
    graphs do not have, and graphs with a fixed size often run with others. Raises ModelLoadError.
    """
    import onnx

    graph = proto.graph
    constants = {tensor.name for tensor in graph.initializer}  # old files list them as inputs, too
    inputs = [value for value in graph.input if value.name not in constants]
    for values, kind in ((inputs, "inputs"), (graph.output, "outputs")):
        if len(values) != 1:
            names = ", ".join(value.name for value in values)
            raise ModelLoadError(
                f"the graph must have one {kind[:-1]}, and has {len(values)} {kind}: {names}"
            )
    [image], [output] = inputs, graph.output
    for value, kind in ((image, "input"), (output, "output")):
        if (data_type := value.type.tensor_type.elem_type) != onnx.TensorProto.FLOAT:
            name = onnx.TensorProto.DataType.Name(data_type).lower()
            raise ModelLoadError(f"the {kind} must be float32, not {name}; the weights may have another type")
    shape = _shape(image)
    if len(shape) != 4 or any(
        dim not in (None, side) for dim, side in zip(shape[1:], (3, size, size), strict=True)
    ):
        raise ModelLoadError(
            f"the input has the shape {_format(shape)}, not [N, 3, {size}, {size}]; the last two are the "
            "crop of the preprocessing"
        )
    fixed = shape[0]
    dims = image.type.tensor_type.shape.dim
    dims[0].dim_param = "batch"
    for dim, side in zip(dims[1:], (3, size, size), strict=True):
        dim.dim_value = side
    del graph.value_info[:]
    output.type.tensor_type.ClearField("shape")
    count = 2 if fixed != 2 else 3
    actual = _output_shape(proto, image.name, count, fixed)
    if actual is not None:
        if len(actual) != 2:
            raise ModelLoadError(f"the output has the shape {_format(actual)}, not [N, {classes}]")
        if actual[0] not in (None, count):
            raise ModelLoadError(_fixed_batch(actual[0]))
        if actual[1] not in (None, classes):
            raise ModelLoadError(f"the model outputs {actual[1]} classes but has {classes} labels")
    declared = output.type.tensor_type.shape
    declared.dim.add().dim_param = "batch"
    declared.dim.add().dim_value = classes


def _output_shape(
    proto: "ModelProto", input_name: str, count: int, fixed: int | None
) -> tuple[int | None, ...] | None:
    """Return the shape of the output for a batch of `count` images, None if it cannot be computed."""
    import onnx

    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    [image] = (value for value in probe.graph.input if value.name == input_name)
    image.type.tensor_type.shape.dim[0].dim_value = count
    try:
        inferred = onnx.shape_inference.infer_shapes(probe, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        if fixed is not None:
            raise ModelLoadError(_fixed_batch(fixed)) from error
        raise ModelLoadError(f"the shapes in the graph contradict each other: {first_line(error)}") from error
    [output] = inferred.graph.output
    return _shape(output) if output.type.tensor_type.HasField("shape") else None


def _fixed_batch(size: int | None) -> str:
    return (
        f"the graph runs only with batches of {size}; export it with a variable size (dynamic_shapes of "
        "torch.onnx.export)"
    )


def _shape(value: "ValueInfoProto") -> tuple[int | None, ...]:
    """Return the sides of a tensor; None for variable ones."""
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        for dim in value.type.tensor_type.shape.dim
    )


def _format(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("N" if side is None else str(side) for side in shape) + "]"
