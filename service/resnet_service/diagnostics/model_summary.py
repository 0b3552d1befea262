"""Summarize a model: parameters, layers, sizes and operations per image."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import nn

from resnet_service.images import Preprocessing
from resnet_service.models import Model, ModelSource, ONNXModel, load_model, weights_path
from resnet_service.models.onnx import count_nodes

_BYTES_PER_PARAMETER: Final = 4  # fp32, before a runtime converts the model


@dataclass(frozen=True)
class ModelSummary:
    """The properties of a model.

    Attributes:
        name: of the model.
        source: file name or URL of the weights.
        parameters: their number, None for a quantized model; of an ONNX file, its floating-point constants.
        buffers: number of values that are stored but not trained, None for a quantized model.
        layers: number of modules without submodules by type, or of the nodes of an ONNX file; None for a
            quantized checkpoint.
        operations: floating-point operations for one image; a multiply-add counts as two.
        file_bytes: size of the weights' file, None for published weights that are not downloaded.
        labels: of the classes.
        preprocessing: of the input.

    """

    name: str
    source: str
    parameters: int | None
    buffers: int | None
    layers: Mapping[str, int] | None
    operations: int
    file_bytes: int | None
    labels: tuple[str, ...]
    preprocessing: Preprocessing

    @property
    def memory_bytes(self) -> int | None:
        """Size of the parameters in fp32, None for a quantized model."""
        return None if self.parameters is None else self.parameters * _BYTES_PER_PARAMETER


def summarize_model(source: ModelSource | str) -> ModelSummary:
    """Summarize a model, with the argument of `load_model`; does not download published weights.

    Raises ModelLoadError.
    """
    source = ModelSource(source) if isinstance(source, str) else source
    if source.is_published:
        spec = source.published_spec()
        model = Model(spec.name, spec.build().eval(), spec.labels, spec.preprocessing, spec.source_name)
    else:
        model = load_model(source)
    parameters: int | None = None
    buffers: int | None = None
    layers: Mapping[str, int] | None = None
    if isinstance(model.program, nn.Module):
        parameters = sum(value.numel() for value in model.program.parameters())
        buffers = sum(value.numel() for value in model.program.buffers())
        layers = _layers(model.program)
    elif isinstance(model.program, ONNXModel):
        nodes, constants = count_nodes(model.program)
        layers, parameters = nodes, None if model.is_quantized else constants
    return ModelSummary(
        name=model.name,
        source=model.source,
        parameters=parameters,
        buffers=buffers,
        layers=layers,
        operations=model.operations,
        file_bytes=_file_bytes(weights_path(source)),
        labels=model.labels,
        preprocessing=model.preprocessing,
    )


def _layers(network: nn.Module) -> Mapping[str, int]:
    leaves = (module for module in network.modules() if not any(module.children()))
    return dict(Counter(type(module).__name__ for module in leaves).most_common())


def _file_bytes(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None
