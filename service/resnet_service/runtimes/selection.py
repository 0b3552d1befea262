"""Choose how a model is executed on the devices there are, and get it ready."""

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
from resnet_service.runtimes import Runtime
from resnet_service.runtimes.pytorch import TorchRuntime

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

RuntimeName = Literal["auto", "torch", "openvino"]

_OPENVINO_ARCHITECTURES: Final = ("x86_64", "AMD64")
"""Where OpenVINO has been seen to be the faster one."""


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
    """Put `model` on each of `devices`, ready for `streams_per_device` batches at a time, which share its weights.

    By default a GPU has two batches in flight, so that one is copied while the other is computed, OpenVINO
    as many as its cores can do best, and PyTorch on a CPU one, on all its cores; several there share
    `threads` cores out.

    `compiled` (torch.compile), `cuda_graphs` and `channels_last` are PyTorch's, which runs the network where
    the first is asked for or the last is not. Raises DeviceUnavailableError for what a device cannot do,
    MissingDependencyError where OpenVINO is not installed, ModelLoadError for a broken graph.
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
    torch_only = torch_options["compiled"] or not torch_options["channels_last"]
    if torch_only and (quantized or name == "openvino"):
        raise DeviceUnavailableError(
            "--compile and the memory format are PyTorch's, and OpenVINO runs this; leave one of them out"
        )
    if (quantized or name == "openvino") and device.type != "cpu":
        raise DeviceUnavailableError(f"OpenVINO runs on the CPU here, not on {device}; use the device cpu")
    if quantized and name == "torch":
        raise DeviceUnavailableError(f"{model.name!r} is quantized, which only --runtime openvino can run")
    if quantized and precision not in ("auto", "int8"):
        raise DeviceUnavailableError(f"{model.name!r} is quantized: int8 is the precision it has")
    if cpu_quota() is not None:  # which the runtimes themselves do not see
        threads = threads or available_cpus()
    chosen: Precision = "int8" if quantized else choose_precision(device, precision)
    if (
        quantized
        or name == "openvino"
        or (name == "auto" and device.type == "cpu" and not torch_only and _prefers_openvino())
    ):
        if find_spec("openvino") is None:
            raise MissingDependencyError("this needs OpenVINO: pip install 'resnet-service[openvino]'")
        from resnet_service.runtimes import openvino

        try:
            return openvino.compile_model(model, chosen, streams=streams_per_device, threads=threads)
        except ModelLoadError as error:
            if quantized or name == "openvino":
                raise
            _log.warning("OpenVINO cannot run this network, so PyTorch does", reason=str(error))
    count = streams_per_device or (2 if device.type == "cuda" else 1)
    each = max(1, (threads or available_cpus()) // count) if count > 1 else threads
    first = TorchRuntime(model.network, model.preprocessing, device, chosen, each, **torch_options)
    return [first, *(first.replica() for _ in range(count - 1))]


def _prefers_openvino() -> bool:
    return platform.machine() in _OPENVINO_ARCHITECTURES and find_spec("openvino") is not None
