"""Select the runtime for a model on each device and create its instances."""

import platform
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final, Literal

import structlog
import torch

from resnet_service.devices import Precision, choose_precision
from resnet_service.errors import DeviceUnavailableError, MissingDependencyError, ModelLoadError
from resnet_service.machine import available_cpus, cpu_quota
from resnet_service.models import Model, ONNXModel
from resnet_service.runtimes.pytorch import TorchRuntime
from resnet_service.runtimes.runtime import Runtime

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

RuntimeName = Literal["auto", "torch", "openvino", "onnxruntime"]

_LIBRARY_NAMES: Final = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
_OPENVINO_ARCHITECTURES: Final = ("x86_64", "AMD64")
"""Architectures on which OpenVINO was measured to be faster than PyTorch."""


def require_openvino() -> None:
    """Raise MissingDependencyError if OpenVINO is not installed."""
    if find_spec("openvino") is None:
        raise MissingDependencyError("OpenVINO is required: make install EXTRAS=openvino")


def require_onnxruntime() -> None:
    """Raise MissingDependencyError if ONNX Runtime is not installed."""
    if find_spec("onnxruntime") is None:
        raise MissingDependencyError("ONNX Runtime is required: make install EXTRAS=onnx")


def check_options(
    device: torch.device,
    name: RuntimeName = "auto",
    precision: Precision | Literal["auto"] = "auto",
    model: Model | None = None,
) -> None:
    """Check the options of `create_runtimes`; without `model`, only what is known before it is loaded.

    Raises DeviceUnavailableError and MissingDependencyError.
    """
    runtime = name if model is None else _runtime_of(model, device, name)
    if runtime == "openvino":
        if device.type != "cpu":
            raise DeviceUnavailableError(
                f"OpenVINO is supported on the CPU only, not on {device}; use --device cpu"
            )
        require_openvino()
    elif runtime == "onnxruntime":
        require_onnxruntime()
        from resnet_service.runtimes import onnxruntime

        onnxruntime.check_provider(device)
        if precision in ("bf16", "fp16"):
            raise DeviceUnavailableError(
                f"ONNX Runtime computes in the precision of the file and does not convert it to {precision}; "
                "use --precision auto"
            )
    if model is not None and model.is_quantized:
        if precision not in ("auto", "int8"):
            raise DeviceUnavailableError(f"the model {model.name!r} is quantized and supports only int8")
    elif model is not None or precision != "int8":
        choose_precision(device, precision)


def _runtime_of(model: Model, device: torch.device, name: RuntimeName) -> RuntimeName:
    """Return the runtime of `model` if it is determined, otherwise "auto".

    Raises DeviceUnavailableError if the runtime `name` cannot run the model.
    """
    if isinstance(model.program, ONNXModel):
        if name == "torch":
            raise DeviceUnavailableError(
                f"the model {model.name!r} is an ONNX file and requires --runtime openvino or onnxruntime"
            )
        if name != "auto":
            return name
        return "openvino" if device.type == "cpu" and find_spec("openvino") is not None else "onnxruntime"
    if name == "onnxruntime":
        raise DeviceUnavailableError(
            f"the model {model.name!r} is not an ONNX file, which --runtime onnxruntime requires; "
            "resnet-service export writes one"
        )
    if model.openvino_model is None:
        return name
    if name == "torch":
        raise DeviceUnavailableError(f"the model {model.name!r} is quantized and requires --runtime openvino")
    return "openvino"


def create_runtimes(
    model: Model,
    devices: Sequence[torch.device],
    *,
    name: RuntimeName = "auto",
    precision: Precision | Literal["auto"] = "auto",
    streams_per_device: int | None = None,
    threads: int | None = None,
    compiled: bool = False,
    cuda_graphs: bool = True,
    channels_last: bool = True,
) -> list[Runtime]:
    """Place `model` on each of `devices` and return one runtime for each batch that runs at the same time.

    `streams_per_device` runtimes share the weights on a device. The default is 2 on a GPU, so that one batch
    is copied while another is computed; OpenVINO's choice for the CPU's cores; and 1 with PyTorch on the CPU,
    where several divide `threads` threads (default: all available CPUs) among them.

    `compiled` (torch.compile), `cuda_graphs` and `channels_last` are options of PyTorch; compiled=True or
    channels_last=False selects it. `cuda_graphs` has no effect on a CPU. Raises DeviceUnavailableError for a
    combination that the device does not support, MissingDependencyError if OpenVINO or ONNX Runtime is
    required but not installed, ModelLoadError if the model cannot be read or converted.
    """
    options = {"compiled": compiled, "cuda_graphs": cuda_graphs, "channels_last": channels_last}
    return [
        runtime
        for device in devices
        for runtime in _create_for_device(
            model, device, name, precision, streams_per_device, threads, **options
        )
    ]


def _create_for_device(
    model: Model,
    device: torch.device,
    name: RuntimeName,
    precision: Precision | Literal["auto"],
    streams_per_device: int | None,
    threads: int | None,
    **torch_options: bool,
) -> Sequence[Runtime]:
    runtime = _runtime_of(model, device, name)
    requires_torch = torch_options["compiled"] or not torch_options["channels_last"]
    if requires_torch and runtime in _LIBRARY_NAMES:
        raise DeviceUnavailableError(
            "--compile and the memory format require PyTorch, but this model or --runtime requires "
            f"{_LIBRARY_NAMES[runtime]}"
        )
    check_options(device, name, precision, model)
    if cpu_quota() is not None:  # the runtimes do not read it
        threads = threads or available_cpus()
    count = streams_per_device or (2 if device.type == "cuda" else 1)
    selected: Precision = "int8" if model.is_quantized else choose_precision(device, precision)
    if runtime == "onnxruntime":
        from resnet_service.runtimes import onnxruntime

        selected = "fp32" if precision == "auto" and selected != "int8" else selected
        return onnxruntime.create_onnx_runtimes(model, device, selected, streams=count, threads=threads)
    prefers_openvino = (
        runtime == "auto" and device.type == "cpu" and not requires_torch and _is_openvino_faster()
    )
    if runtime == "openvino" or prefers_openvino:
        from resnet_service.runtimes import openvino

        try:
            return openvino.compile_model(model, selected, streams=streams_per_device, threads=threads)
        except ModelLoadError as error:
            if runtime == "openvino":
                raise
            _log.warning("openvino_conversion_failed", fallback="torch", reason=str(error))
    threads_each = max(1, (threads or available_cpus()) // count) if count > 1 else threads
    first = TorchRuntime(model.network, model.preprocessing, device, selected, threads_each, **torch_options)
    return [first, *(first.replica() for _ in range(count - 1))]


def _is_openvino_faster() -> bool:
    return platform.machine() in _OPENVINO_ARCHITECTURES and find_spec("openvino") is not None
