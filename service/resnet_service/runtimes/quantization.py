"""Quantize a network to int8: post-training quantization with NNCF, calibrated on images."""

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from resnet_service.errors import MissingDependencyError, UnsupportedModelError
from resnet_service.models import Model, ONNXModel
from resnet_service.models.onnx import create_model
from resnet_service.runtimes.onnx_graph import input_name
from resnet_service.runtimes.runtime import normalization
from resnet_service.runtimes.selection import create_runtimes

_BATCH_SIZE: Final = 32


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized model and its agreement with the original.

    `agreement` is the fraction of the calibration images, 0..1, for which both have the same best class.
    """

    model: Model
    agreement: float


def check_quantizable(model: Model) -> None:
    """Raise UnsupportedModelError if `model` is quantized."""
    if model.is_quantized:
        raise UnsupportedModelError(f"the model {model.name!r} is quantized already")


def require_nncf() -> None:
    """Raise MissingDependencyError if NNCF or OpenVINO is not installed."""
    if find_spec("nncf") is None or find_spec("openvino") is None:
        raise MissingDependencyError("quantization requires NNCF: make install EXTRAS=quantize")


def quantize(model: Model, images: npt.NDArray[np.uint8]) -> QuantizedModel:
    """Quantize `model` to int8, calibrated on `images` [N, S, S, 3] uint8.

    Weights get one scale per channel, activations one per tensor, selected to clip few values on the images.
    Needs NNCF and a model that is not quantized: call `require_nncf` and `check_quantizable` first. Raises
    ModelLoadError if OpenVINO cannot convert the network.
    """
    from resnet_service.runtimes import openvino  # before NNCF, because it disables telemetry

    import nncf  # isort: skip

    with redirect_stdout(sys.stderr):  # NNCF prints its progress to standard output
        quantized = nncf.quantize(
            openvino.to_openvino(model),
            nncf.Dataset([image[None] for image in images]),
            subset_size=len(images),
        )
    result = Model(model.name, openvino.serialize(quantized), model.labels, model.preprocessing, model.source)
    return QuantizedModel(result, _agreement(result, model, images))


def quantize_onnx(model: Model, images: npt.NDArray[np.uint8]) -> QuantizedModel:
    """Quantize a model whose program is an ONNX graph, as `quantize` does, to a graph with int8 operations.

    Needs ONNX Runtime, too. Raises ModelLoadError if a runtime cannot run the graph.
    """
    import onnx

    from resnet_service.runtimes import openvino  # noqa: F401 - before NNCF, because it disables telemetry

    import nncf  # isort: skip

    assert isinstance(model.program, ONNXModel)
    proto = onnx.load_model_from_string(model.program.graph)
    name = input_name(proto.graph)
    mean, std = (values.numpy() for values in normalization(model.preprocessing))

    def to_input(image: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        return {name: ((image.transpose(2, 0, 1) - mean) / std)[None].astype(np.float32)}

    with redirect_stdout(sys.stderr):  # NNCF prints its progress to standard output
        quantized = nncf.quantize(proto, nncf.Dataset(list(images), to_input), subset_size=len(images))
    result = create_model(
        *(model.name, quantized, model.labels, model.preprocessing), model.program.output, model.source
    )
    return QuantizedModel(result, _agreement(result, model, images))


def _agreement(quantized: Model, original: Model, images: npt.NDArray[np.uint8]) -> float:
    return float((_best_classes(quantized, images) == _best_classes(original, images)).mean())


def _best_classes(model: Model, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    [runtime] = create_runtimes(model, [torch.device("cpu")], name="openvino", streams_per_device=1)
    batches = np.split(images, range(_BATCH_SIZE, len(images), _BATCH_SIZE))
    return np.concatenate([runtime.run(list(batch), 1).class_ids[:, 0] for batch in batches])
