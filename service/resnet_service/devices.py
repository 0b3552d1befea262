"""Select the device and the precision that a model runs on.

This module only selects; `resnet_service.runtimes` runs models on the selected device.
"""

from typing import Literal

import torch

from resnet_service.errors import DeviceUnavailableError
from resnet_service.machine import has_native_bf16

Precision = Literal["fp32", "tf32", "bf16", "fp16", "int8"]


def choose_device(name: str = "auto") -> torch.device:
    """Return the device `name`: auto, cpu, cuda, cuda:N or mps; auto prefers CUDA, then Apple MPS, then CPU.

    The case does not matter. Raises DeviceUnavailableError if `name` is unknown or this machine does not have
    the device.
    """
    name = name.lower()
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceUnavailableError(
            f"unknown device {name!r}; use auto, cpu, cuda, cuda:N or mps"
        ) from error
    if device.type == "cuda":
        return torch.device("cuda", _cuda_index(device.index or 0))
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceUnavailableError(
            "mps is not available: this machine is not a Mac with an Apple GPU; use cpu or auto"
        )
    if device.type not in ("cpu", "mps"):
        raise DeviceUnavailableError(f"unsupported device {name!r}; use auto, cpu, cuda, cuda:N or mps")
    return torch.device(device.type)


def choose_devices(names: str = "auto") -> tuple[torch.device, ...]:
    """Return the devices of a comma-separated list, for example "cuda:0,cuda:1"; see `choose_device`.

    Raises DeviceUnavailableError also for duplicates.
    """
    devices = tuple(choose_device(name.strip()) for name in names.split(","))
    if len(set(devices)) < len(devices):
        raise DeviceUnavailableError(
            f"{names!r} contains a device twice; use --streams-per-device N to run N batches at a time on it"
        )
    return devices


def cuda_unavailable_reason() -> str | None:
    """Return why CUDA is not available, or None if it is."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return "this build of PyTorch does not include CUDA"
    return "PyTorch found no usable NVIDIA GPU or driver"


def _cuda_index(index: int) -> int:
    if reason := cuda_unavailable_reason():
        raise DeviceUnavailableError(f"cuda is not available: {reason}; use cpu or auto")
    if index >= torch.cuda.device_count():
        raise DeviceUnavailableError(
            f"cuda:{index} does not exist: this machine has {torch.cuda.device_count()} GPUs"
        )
    return index


def choose_precision(device: torch.device, name: Precision | Literal["auto"] = "auto") -> Precision:
    """Return the precision `name`; auto selects the fastest one that does not reduce accuracy.

    Auto is fp16 on CUDA (10 bits of mantissa, and the activations of a ResNet stay far below its range), bf16
    on CPUs with native bf16, and fp32 elsewhere. Raises DeviceUnavailableError if the device does not support
    the precision.
    """
    if name == "auto":
        if device.type == "cuda":
            return "fp16"
        return "bf16" if device.type == "cpu" and has_native_bf16() else "fp32"
    if name == "tf32" and device.type != "cuda":
        raise DeviceUnavailableError(f"tf32 is available on NVIDIA GPUs only, not on {device.type}")
    if name == "int8":
        raise DeviceUnavailableError("int8 needs a quantized model: see resnet-service quantize --help")
    if name == "fp16" and device.type == "cpu":
        raise DeviceUnavailableError("fp16 is not supported on the CPU; use bf16 or fp32")
    return name


def training_precision(device: torch.device) -> Literal["bf16", "fp32"]:
    """Return the training precision: bf16 if native, otherwise fp32; fp16 would need scaled gradients."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and has_native_bf16() else "fp32"
