"""Run an ONNX graph with ONNX Runtime, on devices that OpenVINO does not support, or on the CPU."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from resnet_service.devices import Precision
from resnet_service.errors import (
    DeviceError,
    DeviceOutOfMemoryError,
    DeviceUnavailableError,
    ModelLoadError,
    first_line,
)
from resnet_service.images import Crop
from resnet_service.machine import available_cpus
from resnet_service.models import Model
from resnet_service.runtimes.onnx_graph import CROPS, EMBEDDINGS, PROBABILITIES, end_to_end_graph
from resnet_service.runtimes.runtime import DeviceMemory, TopKResult, stack_crops, top_k

_PROVIDERS: Final = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "mps": "CoreMLExecutionProvider",
}
_ERRORS: Final = (
    *(ort_errors.Fail, ort_errors.InvalidGraph, ort_errors.InvalidArgument, ort_errors.InvalidProtobuf),
    *(ort_errors.NotImplemented, ort_errors.RuntimeException, ort_errors.EPFail, ort_errors.NoSuchFile),
    RuntimeError,
)
"""ONNX Runtime's exceptions have no common base class."""

_OUT_OF_MEMORY_TEXTS: Final = ("bad_alloc", "bad allocation", "Failed to allocate memory", "out of memory")
_DEVICE_FAILURE_TEXTS: Final = ("CUDA failure", "CUDNN failure", "CUBLAS failure")
_ONLY_ERRORS: Final = 3

ort.set_default_logger_severity(_ONLY_ERRORS)  # it warns about GPUs that a machine does not have


class ONNXRuntime:
    """An ONNX graph on one device: see `Runtime`. Instances of a device share a session."""

    name: str = "onnxruntime"

    def __init__(
        self, session: ort.InferenceSession, device: str, precision: Precision, embedding_size: int | None
    ) -> None:
        self.device = device
        self.precision: str = precision
        self.embedding_size = embedding_size
        self._session = session

    def run(self, crops: Sequence[Crop], k: int, *, with_embeddings: bool = False) -> TopKResult:
        """Classify a batch: see `Runtime.run`."""
        names = [PROBABILITIES]
        if with_embeddings and self.embedding_size is not None:
            names.append(EMBEDDINGS)
        try:
            probabilities, *embeddings = self._session.run(names, {CROPS: stack_crops(crops).numpy()})
        except (*_ERRORS, MemoryError) as error:
            if isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS):
                raise DeviceOutOfMemoryError("the device is out of memory") from error
            if any(text in str(error) for text in _DEVICE_FAILURE_TEXTS):
                raise DeviceError("the device has failed") from error  # CUDA errors are sticky
            raise
        return top_k(probabilities, k, self.device, *embeddings)

    def memory(self) -> DeviceMemory | None:
        """Return None: ONNX Runtime does not report its memory."""
        return None


def check_provider(device: torch.device) -> None:
    """Raise DeviceUnavailableError if the installed ONNX Runtime does not support the device."""
    provider = _PROVIDERS.get(device.type)
    if provider not in ort.get_available_providers():
        hint = "install the package onnxruntime-gpu instead of onnxruntime, or " * (device.type == "cuda")
        raise DeviceUnavailableError(
            f"the installed ONNX Runtime does not support {device}: {hint}use --device cpu"
        )


def create_onnx_runtimes(
    model: Model, device: torch.device, precision: Precision, *, streams: int, threads: int | None = None
) -> list[ONNXRuntime]:
    """Place an ONNX model on `device` and return `streams` runtimes, which share `threads` CPU threads.

    Operations that the device does not support run on the CPU. Raises DeviceUnavailableError if ONNX Runtime
    does not support the device, ModelLoadError if it cannot run the graph.
    """
    check_provider(device)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_cpus()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores also decode images
    try:
        session = ort.InferenceSession(
            end_to_end_graph(model, with_embeddings=True), options, providers=_providers(device, precision)
        )
        size, classes = model.preprocessing.crop, len(model.labels)
        output, *embeddings = session.run(None, {CROPS: np.zeros((2, size, size, 3), np.uint8)})
    except _ERRORS as error:
        raise ModelLoadError(
            f"ONNX Runtime cannot run the model {model.name!r}: {first_line(error)}"
        ) from error
    if output.shape != (2, classes):
        raise ModelLoadError(
            f"the model {model.name!r} outputs {list(output.shape)} for 2 images, not [2, {classes}]"
        )
    if session.get_providers()[0] != _PROVIDERS[device.type]:  # it falls back to the CPU and only logs it
        raise DeviceUnavailableError(
            f"ONNX Runtime could not initialize {device}; its messages say why, often a missing library"
        )
    length = embeddings[0].shape[1] if embeddings else None
    return [ONNXRuntime(session, str(device), precision, length) for _ in range(streams)]


def _providers(device: torch.device, precision: Precision) -> list[tuple[str, dict[str, Any]]]:
    providers: list[tuple[str, dict[str, Any]]] = [(_PROVIDERS["cpu"], {})]
    if device.type == "cuda":
        options = {"device_id": device.index or 0, "use_tf32": int(precision == "tf32")}
        providers.insert(0, (_PROVIDERS["cuda"], options))
    elif device.type == "mps":
        providers.insert(0, (_PROVIDERS["mps"], {}))
    return providers
