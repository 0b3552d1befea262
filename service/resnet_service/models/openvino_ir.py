"""A network as an OpenVINO graph: what quantization makes, and all that is left of the network then."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from resnet_service.errors import ModelLoadError

_TOPOLOGY: Final = "openvino.xml"
_WEIGHTS: Final = "openvino.bin"


@dataclass(frozen=True)
class OpenVINOModel:
    """OpenVINO's two files, as bytes: [N, S, S, 3] uint8 in, probabilities [N, classes] fp32 out."""

    topology: bytes
    weights: bytes

    def state(self) -> dict[str, Tensor]:
        """Return it as the tensors of a checkpoint."""
        parts = {_TOPOLOGY: self.topology, _WEIGHTS: self.weights}
        return {key: torch.from_numpy(np.frombuffer(part, np.uint8).copy()) for key, part in parts.items()}


def openvino_model_from_state(state: Mapping[str, Tensor]) -> OpenVINOModel | None:
    """Return the graph that a checkpoint's tensors are; None where they are a network's weights.

    Raises ModelLoadError where they are half a graph.
    """
    if _TOPOLOGY not in state and _WEIGHTS not in state:
        return None
    if set(state) != {_TOPOLOGY, _WEIGHTS} or any(tensor.dtype != torch.uint8 for tensor in state.values()):
        raise ModelLoadError(f"a graph has the tensors {_TOPOLOGY} and {_WEIGHTS} of uint8, and no others")
    return OpenVINOModel(state[_TOPOLOGY].numpy().tobytes(), state[_WEIGHTS].numpy().tobytes())
