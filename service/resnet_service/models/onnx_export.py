"""Export a network as an ONNX graph."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import torch

from resnet_service.errors import MissingDependencyError, ModelLoadError, UnsupportedModelError, first_line
from resnet_service.models.model import Model, ONNXModel, OpenVINOModel
from resnet_service.models.onnx import create_model, require_onnx

if TYPE_CHECKING:
    from onnx import GraphProto

_OPSET: Final = 18
"""The first one of PyTorch's exporter; runtimes from 2023 on run it."""

_MAX_BATCH: Final = 4096


def require_exporter() -> None:
    """Raise MissingDependencyError if a package that PyTorch's exporter needs is not installed."""
    require_onnx()
    if find_spec("onnxscript") is None:
        raise MissingDependencyError("exporting to ONNX requires onnxscript: make install EXTRAS=onnx")


def check_exportable(model: Model) -> None:
    """Raise UnsupportedModelError if `model` has neither a network nor an ONNX graph."""
    if isinstance(model.program, OpenVINOModel):
        raise UnsupportedModelError(
            f"the model {model.name!r} is quantized for OpenVINO and has no network to export; quantize the "
            "model that it was quantized from with --output FILE.onnx"
        )


def export_onnx(model: Model) -> Model:
    """Return the model with its network as an ONNX graph with logits as output; one with a graph as it is.

    Call `require_exporter` and `check_exportable` first. Raises ModelLoadError if PyTorch cannot export the
    network.
    """
    if isinstance(model.program, ONNXModel):
        return model
    size = model.preprocessing.crop
    batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH)
    try:
        program = torch.onnx.export(
            model.network,
            (torch.zeros(2, 3, size, size),),
            input_names=["image"],
            output_names=["logits"],
            opset_version=_OPSET,
            dynamo=True,
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise ModelLoadError(f"PyTorch cannot export {model.name} to ONNX: {first_line(error)}") from error
    assert program is not None
    proto = program.model_proto
    _remove_traces(proto.graph)
    return create_model(model.name, proto, model.labels, model.preprocessing, "logits", model.source)


def _remove_traces(graph: "GraphProto") -> None:
    """Remove what the exporter notes about the source of each node: paths of this machine, and megabytes."""
    for entry in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del entry.metadata_props[:]
        entry.doc_string = ""
