"""Choose how a model is executed on the devices there are, and get it ready."""

import platform
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final, Literal

import structlog
import torch

from service import hardware
from service.errors import DeviceUnavailable, ExtraMissing, ModelUnavailable
from service.hardware import Precision
from service.models import Model
from service.runtimes import Runtime
from service.runtimes.pytorch import TorchRuntime

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

Name = Literal["auto", "torch", "openvino"]

_MEASURED: Final = ("x86_64", "AMD64")
"""Where OpenVINO has been seen to be the faster one."""


def open_runtimes(
    model: Model,
    devices: Sequence[torch.device],
    *,
    name: Name = "auto",
    precision: Precision | Literal["auto"] = "auto",
    instances: int | None = None,
    threads: int | None = None,
    compiled: bool = False,
    cuda_graphs: bool = True,
    channels_last: bool = True,
) -> list[Runtime]:
    """Put `model` on each of `devices`, ready for `instances` batches at a time, which share its weights.

    By default a GPU has two batches in flight, so that one is copied while the other is computed, OpenVINO
    as many as its cores can do best, and PyTorch on a CPU one, on all its cores; several there share
    `threads` cores out.

    `compiled` (torch.compile), `cuda_graphs` and `channels_last` are PyTorch's, which runs the network where
    the first is asked for or the last is not. Raises DeviceUnavailable for what a device cannot do,
    ExtraMissing where OpenVINO is not installed, ModelUnavailable for a broken graph.
    """
    options = {"compiled": compiled, "cuda_graphs": cuda_graphs, "channels_last": channels_last}
    return [
        runtime
        for device in devices
        for runtime in _on_device(model, device, name, precision, instances, threads, **options)
    ]


def _on_device(
    model: Model,
    device: torch.device,
    name: Name,
    precision: Precision | Literal["auto"],
    instances: int | None,
    threads: int | None,
    **torch_options: bool,
) -> Sequence[Runtime]:
    quantised = model.graph is not None
    torch_only = torch_options["compiled"] or not torch_options["channels_last"]
    if torch_only and (quantised or name == "openvino"):
        raise DeviceUnavailable(
            "--compile and the memory format are PyTorch's, and OpenVINO runs this; leave one of them out"
        )
    if (quantised or name == "openvino") and device.type != "cpu":
        raise DeviceUnavailable(f"OpenVINO runs on the CPU here, not on {device}; use the device cpu")
    if quantised and name == "torch":
        raise DeviceUnavailable(f"{model.name!r} is quantised, which only --runtime openvino can run")
    if quantised and precision not in ("auto", "int8"):
        raise DeviceUnavailable(f"{model.name!r} is quantised: int8 is the precision it has")
    if hardware.cpu_quota() is not None:  # which the runtimes themselves do not see
        threads = threads or hardware.cores()
    chosen: Precision = "int8" if quantised else hardware.choose_precision(device, precision)
    if (
        quantised
        or name == "openvino"
        or (name == "auto" and device.type == "cpu" and not torch_only and _prefers_openvino())
    ):
        if find_spec("openvino") is None:
            raise ExtraMissing("this needs OpenVINO: pip install 'resnet-service[openvino]'")
        from service.runtimes import openvino

        try:
            return openvino.compile_model(model, chosen, streams=instances, threads=threads)
        except ModelUnavailable as error:
            if quantised or name == "openvino":
                raise
            _log.warning("OpenVINO cannot run this network, so PyTorch does", reason=str(error))
    count = instances or (2 if device.type == "cuda" else 1)
    each = max(1, (threads or hardware.cores()) // count) if count > 1 else threads
    first = TorchRuntime(model.network, model.preprocessing, device, chosen, each, **torch_options)
    return [first, *(first.sibling() for _ in range(count - 1))]


def _prefers_openvino() -> bool:
    return platform.machine() in _MEASURED and find_spec("openvino") is not None
