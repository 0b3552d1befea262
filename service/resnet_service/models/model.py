"""A classifier in memory: a network, an OpenVINO model or an ONNX graph, with labels and preprocessing."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from resnet_service.errors import ModelLoadError, UnsupportedModelError
from resnet_service.images import Preprocessing
from resnet_service.models.operations import (
    count_network_operations,
    count_onnx_operations,
    count_openvino_operations,
)

FIRST_VERSION: Final = "1"
"""The version of a model that has no other."""
_TOPOLOGY: Final = "openvino.xml"
_WEIGHTS: Final = "openvino.bin"


@dataclass(frozen=True)
class OpenVINOModel:
    """The two files of an OpenVINO model, as bytes; created by quantization.

    Input [N, S, S, 3] uint8, output probabilities [N, classes] fp32. The network that was quantized cannot be
    recovered from it.
    """

    topology: bytes
    weights: bytes

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Self | None:
        """Return the model stored in a checkpoint's tensors; None if they are the weights of a network.

        Raises ModelLoadError if one of the two files is missing or other tensors are present.
        """
        if _TOPOLOGY not in state and _WEIGHTS not in state:
            return None
        if set(state) != {_TOPOLOGY, _WEIGHTS} or any(
            tensor.dtype != torch.uint8 for tensor in state.values()
        ):
            raise ModelLoadError(
                f"a quantized checkpoint must have exactly two uint8 tensors, {_TOPOLOGY} and {_WEIGHTS}"
            )
        return cls(state[_TOPOLOGY].numpy().tobytes(), state[_WEIGHTS].numpy().tobytes())

    def state_dict(self) -> dict[str, Tensor]:
        """Return both files as uint8 tensors for a checkpoint."""
        files = {_TOPOLOGY: self.topology, _WEIGHTS: self.weights}
        return {key: torch.from_numpy(np.frombuffer(data, np.uint8).copy()) for key, data in files.items()}


@dataclass(frozen=True)
class ONNXModel:
    """An ONNX graph with its weights, serialized; created by `resnet_service.models.onnx`.

    Input [N, 3, S, S] normalized float32, output [N, classes] float32, any N. `output` says whether a softmax
    is still missing. The operations of a quantized graph are int8.
    """

    graph: bytes
    output: Literal["logits", "probabilities"]
    is_quantized: bool


class ModelVersion(NamedTuple):
    """The name of a model and one of its versions, which is a number: "resnet50", "2"."""

    name: str
    version: str


@dataclass(frozen=True)
class ModelDescription:
    """What a process needs to know about a model to decode its inputs and to name its outputs.

    `embedding_size` is the length of an embedding on the runtime in use; None if the model has none.
    """

    name: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    source: str
    version: str = FIRST_VERSION
    embedding_size: int | None = None

    @property
    def key(self) -> ModelVersion:
        """The name and the version."""
        return ModelVersion(self.name, self.version)


@dataclass(frozen=True)
class Model:
    """A classifier that a runtime can place on a device; immutable, created by `load_model`.

    `program` is a network in fp32 on the CPU in eval mode, an OpenVINO model or an ONNX graph. The network
    takes [N, 3, S, S] normalized float, S = preprocessing.crop, and returns logits [N, len(labels)].
    `source` is the file name or URL of the weights.
    """

    name: str
    program: nn.Module | OpenVINOModel | ONNXModel
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    source: str

    @property
    def description(self) -> ModelDescription:
        """The model without its program."""
        return ModelDescription(self.name, self.labels, self.preprocessing, self.source)

    @property
    def network(self) -> nn.Module:
        """The network. Raises UnsupportedModelError if the model has none."""
        if isinstance(self.program, ONNXModel):
            raise UnsupportedModelError(
                f"the model {self.name!r} is an ONNX file, which only OpenVINO and ONNX Runtime can run; use "
                "the model that it was exported from"
            )
        if isinstance(self.program, OpenVINOModel):
            raise UnsupportedModelError(
                f"the model {self.name!r} is quantized; use the model that it was quantized from"
            )
        return self.program

    @cached_property
    def operations(self) -> int:
        """Floating-point operations for one image; a multiply-add counts as two."""
        if isinstance(self.program, OpenVINOModel):
            return count_openvino_operations(self.program.topology)
        if isinstance(self.program, ONNXModel):
            return count_onnx_operations(self.program.graph)
        return count_network_operations(self.program, self.preprocessing.crop)

    @property
    def openvino_model(self) -> OpenVINOModel | None:
        """The OpenVINO model of a quantized model, otherwise None."""
        return self.program if isinstance(self.program, OpenVINOModel) else None

    @property
    def is_quantized(self) -> bool:
        """Whether the operations are int8."""
        return isinstance(self.program, OpenVINOModel) or (
            isinstance(self.program, ONNXModel) and self.program.is_quantized
        )
