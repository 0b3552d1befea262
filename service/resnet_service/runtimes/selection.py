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
from resnet_service.models import Model
from resnet_service.runtimes.pytorch import TorchRuntime
from resnet_service.runtimes.runtime import Runtime

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

RuntimeName = Literal["auto", "torch", "openvino"]

_OPENVINO_ARCHITECTURES: Final = ("x86_64", "AMD64")
"""Architectures on which OpenVINO was measured to be faster than PyTorch."""


def require_openvino() -> None:
    """Raise MissingDependencyError if OpenVINO is not installed."""
    if find_spec("openvino") is None:
        raise MissingDependencyError("OpenVINO is required: make install EXTRAS=openvino")


def check_options(
    device: torch.device,
    name: RuntimeName = "auto",
    precision: Precision | Literal["auto"] = "auto",
    model: Model | None = None,
) -> None:
    """Check the options of `create_runtimes`; without `model`, only what is known before it is loaded.

    Raises DeviceUnavailableError and MissingDependencyError.
    """
    quantized = model is not None and model.openvino_model is not None
    if quantized or name == "openvino":
        if device.type != "cpu":
            raise DeviceUnavailableError(
                f"OpenVINO is supported on the CPU only, not on {device}; use --device cpu"
            )
        require_openvino()
    if model is not None and quantized:
        if name == "torch":
            raise DeviceUnavailableError(
                f"the model {model.name!r} is quantized and requires --runtime openvino"
            )
        if precision not in ("auto", "int8"):
            raise DeviceUnavailableError(f"the model {model.name!r} is quantized and supports only int8")
    elif model is not None or precision != "int8":
        choose_precision(device, precision)


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
    combination that the device does not support, MissingDependencyError if OpenVINO is required but not
    installed, ModelLoadError if the model cannot be read or converted.
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
    quantized = model.openvino_model is not None
    requires_openvino = quantized or name == "openvino"
    requires_torch = torch_options["compiled"] or not torch_options["channels_last"]
    if requires_torch and requires_openvino:
        raise DeviceUnavailableError(
            "--compile and the memory format require PyTorch, but this model or --runtime requires OpenVINO"
        )
    check_options(device, name, precision, model)
    if cpu_quota() is not None:  # the runtimes do not read it
        threads = threads or available_cpus()
    selected: Precision = "int8" if quantized else choose_precision(device, precision)
    prefers_openvino = (
        name == "auto" and device.type == "cpu" and not requires_torch and _is_openvino_faster()
    )
    if requires_openvino or prefers_openvino:
        from resnet_service.runtimes import openvino

        try:
            return openvino.compile_model(model, selected, streams=streams_per_device, threads=threads)
        except ModelLoadError as error:
            if requires_openvino:
                raise
            _log.warning("openvino_conversion_failed", fallback="torch", reason=str(error))
    count = streams_per_device or (2 if device.type == "cuda" else 1)
    threads_each = max(1, (threads or available_cpus()) // count) if count > 1 else threads
    first = TorchRuntime(model.network, model.preprocessing, device, selected, threads_each, **torch_options)
    return [first, *(first.replica() for _ in range(count - 1))]


def _is_openvino_faster() -> bool:
    return platform.machine() in _OPENVINO_ARCHITECTURES and find_spec("openvino") is not None
