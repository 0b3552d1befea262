"""Which device and which precision a model runs on.

Choosing is kept apart from executing: `resnet_service.runtimes` is given the device and the precision.
"""

from typing import Literal

import torch

from resnet_service.errors import DeviceUnavailableError
from resnet_service.machine import has_native_bf16

Precision = Literal["fp32", "tf32", "bf16", "fp16", "int8"]


def choose_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; for "auto" CUDA, then Apple MPS, then CPU.

    Raises DeviceUnavailableError where `name` is no device, or one that this machine does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceUnavailableError(f"{name!r} is no device: use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        return torch.device("cuda", _cuda_index(device.index or 0))
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceUnavailableError(
            "mps was asked for, but this is no Mac with an Apple GPU; use cpu or auto"
        )
    if device.type not in ("cpu", "mps"):
        raise DeviceUnavailableError(f"{name!r} is not supported: use auto, cpu, cuda, cuda:N or mps")
    return torch.device(device.type)


def choose_devices(names: str = "auto") -> tuple[torch.device, ...]:
    """Return the devices called `names`, with commas between, as in "cuda:0,cuda:1": see `choose_device`.

    Raises DeviceUnavailableError also where one is named twice.
    """
    devices = tuple(choose_device(name.strip()) for name in names.split(","))
    if len(set(devices)) < len(devices):
        raise DeviceUnavailableError(
            f"{names!r} names a device twice; --streams-per-device N gives it N batches at a time"
        )
    return devices


def cuda_unavailable_reason() -> str | None:
    """Say why there is no CUDA here; None where there is."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return "this build of PyTorch has no CUDA"
    return "PyTorch sees no usable NVIDIA GPU or driver"


def _cuda_index(index: int) -> int:
    if why := cuda_unavailable_reason():
        raise DeviceUnavailableError(f"cuda was asked for, but {why}; use cpu or auto")
    if index >= torch.cuda.device_count():
        raise DeviceUnavailableError(
            f"cuda:{index} was asked for, but there are {torch.cuda.device_count()} GPUs"
        )
    return index


def choose_precision(device: torch.device, name: Precision | Literal["auto"] = "auto") -> Precision:
    """Return the precision called `name`; for "auto" the fastest that costs no accuracy.

    That is fp16 on CUDA (10 bits of mantissa, and a ResNet's activations stay far below its range),
    bf16 on CPUs that multiply it natively, fp32 elsewhere.

    Raises DeviceUnavailableError for a precision that the device does not have.
    """
    if name == "auto":
        if device.type == "cuda":
            return "fp16"
        return "bf16" if device.type == "cpu" and has_native_bf16() else "fp32"
    if name == "tf32" and device.type != "cuda":
        raise DeviceUnavailableError(f"tf32 exists on NVIDIA GPUs only, not on {device.type}")
    if name == "int8":
        raise DeviceUnavailableError("int8 needs a quantized model: see resnet-service quantize --help")
    if name == "fp16" and device.type == "cpu":
        raise DeviceUnavailableError("fp16 is not supported on the CPU; use bf16 or fp32")
    return name


def training_precision(device: torch.device) -> Literal["bf16", "fp32"]:
    """Return the precision to train in: bf16 where it is native, as fp16's gradients need scaling."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and has_native_bf16() else "fp32"
