"""Check whether this machine can serve: versions, devices, memory, caches, decoder and numerical results."""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

from resnet_service.devices import cuda_unavailable_reason
from resnet_service.errors import ServiceError, first_line
from resnet_service.files import app_cache_dir
from resnet_service.images import FORMATS, Preprocessing, decode_image
from resnet_service.images.examples import example_photographs
from resnet_service.machine import available_memory, hardware_info, has_native_bf16, instruction_sets

State = Literal["ok", "note", "problem"]

_OPTIONAL: Final = {
    "openvino": ("openvino", "the fastest runtime on x86 CPUs, required for int8"),
    "nncf": ("quantize", "resnet-service quantize"),
    "onnx": ("onnx", "ONNX files and resnet-service export"),
    "timm": ("timm", "models of timm"),
    "matplotlib": ("train", "training, activation maps and plots in reports"),
    "streamlit": ("ui", "resnet-service ui"),
    "opentelemetry-sdk": ("traces", "serve --traces-url"),
}
_MIN_DISK_BYTES: Final = 2 * 10**9
_MIN_MEMORY_BYTES: Final = 2 * 2**30
_MAX_DIFFERENCE: Final = 1e-3


@dataclass(frozen=True)
class Check:
    """The result of one check.

    `state` is "note" if something optional is missing and "problem" if something does not work; `hint` says
    what to do, or is empty.
    """

    name: str
    state: State
    detail: str
    hint: str = ""


def run_checks() -> Iterator[Check]:
    """Yield the result of each check as it completes, the fast checks first."""
    yield _python()
    yield from _torch()
    yield _cuda()
    yield from _gpus()
    yield _mps()
    yield _processor()
    yield _memory()
    yield from _optional()
    yield from _caches()
    yield _decoder()
    for device in _devices():
        yield _convolution(device)


def _python() -> Check:
    return Check("Python", "ok", f"{sys.version.split()[0]} in {sys.prefix}")


def _torch() -> Iterator[Check]:
    yield Check("PyTorch", "ok", torch.__version__)
    try:
        import torchvision

        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        torchvision.ops.nms(boxes, torch.ones(1), 0.5)  # compiled code, whose version must match PyTorch's
    except (ImportError, RuntimeError, AttributeError) as error:
        hint = "install the torchvision built for this PyTorch: pip install --upgrade torch torchvision"
        yield Check("torchvision", "problem", first_line(error), hint)
    else:
        yield Check("torchvision", "ok", torchvision.__version__)


def _cuda() -> Check:
    reason = cuda_unavailable_reason()
    if reason is None:
        return Check("CUDA", "ok", f"{torch.version.cuda}, {torch.cuda.device_count()} GPUs")
    hint = ""
    if shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists():
        hint = (
            "an NVIDIA driver is installed; start a container with --gpus all (NVIDIA Container Toolkit), "
            "otherwise install a PyTorch built for the driver's CUDA version, which nvidia-smi shows"
        )
    return Check("CUDA", "problem" if hint else "note", reason, hint)


def _gpus() -> Iterator[Check]:
    if not torch.cuda.is_available():
        return
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        try:
            free, _ = torch.cuda.mem_get_info(index)
        except RuntimeError as error:
            yield Check(
                f"GPU {index}",
                "problem",
                f"{gpu.name}: {first_line(error)}",
                "check the output of nvidia-smi",
            )
            continue
        detail = (
            f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB ({free / 2**30:.0f} free), "
            f"compute capability {gpu.major}.{gpu.minor}"
        )
        yield Check(f"GPU {index}", "ok", detail)


def _mps() -> Check:
    if torch.backends.mps.is_available():
        return Check("Apple MPS", "ok", "available")
    if torch.backends.mps.is_built():
        return Check("Apple MPS", "problem", "not available", "requires macOS 14 and Apple silicon")
    return Check("Apple MPS", "note", "not supported by this build of PyTorch; only builds for macOS do")


def _processor() -> Check:
    machine = hardware_info()
    sets = ", ".join(instruction_sets()) or "unknown"
    detail = f"{machine.processor}, {machine.architecture}, {machine.cores} cores, instruction sets: {sets}"
    if has_native_bf16():
        return Check("processor", "ok", f"{detail}; native bf16, which --precision auto uses")
    return Check("processor", "ok", f"{detail}; no native bf16, so --precision auto uses fp32")


def _memory() -> Check:
    free = available_memory()
    if free is None:
        return Check("memory", "note", "unknown on this system")
    detail = f"{free / 2**30:.1f} GiB free for this process"
    if free < _MIN_MEMORY_BYTES:
        return Check("memory", "problem", detail, "PyTorch with a ResNet-152 needs about 2 GiB")
    return Check("memory", "ok", detail)


def _optional() -> Iterator[Check]:
    for package, (extra, use) in _OPTIONAL.items():
        try:
            yield Check(package, "ok", version(package))
        except PackageNotFoundError:
            hint = f"for {use}: make install EXTRAS={extra}"
            yield Check(package, "note", "not installed", hint)


def _caches() -> Iterator[Check]:
    for content, folder in (("weights", Path(torch.hub.get_dir())), ("compiled networks", app_cache_dir())):
        name = f"cache of {content}"
        # A folder inside a folder without access permission counts as missing: os.access cannot see it.
        existing = next(path for path in (folder, *folder.absolute().parents) if os.access(path, os.F_OK))
        free = shutil.disk_usage(existing).free
        detail = f"{folder}, {free / 1e9:.0f} GB free"
        if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
            hint = "set TORCH_HOME (weights) or XDG_CACHE_HOME to a writable folder"
            yield Check(name, "problem", f"{folder} cannot be written", hint)
        elif free < _MIN_DISK_BYTES:
            yield Check(name, "problem", detail, f"free at least {_MIN_DISK_BYTES / 1e9:.0f} GB")
        else:
            yield Check(name, "ok", detail)


def _decoder() -> Check:
    preprocessing = Preprocessing(232, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    for name, image in example_photographs().items():
        try:
            crop = decode_image(image, preprocessing)
        except ServiceError as error:
            return Check("decoder", "problem", str(error), "reinstall Pillow and simplejpeg")
        if crop.std() == 0:
            return Check("decoder", "problem", f"the decoded image {name!r} has only one color")
    return Check("decoder", "ok", f"supports {', '.join(FORMATS)}")


def _devices() -> list[torch.device]:
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        gpus.append(torch.device("mps"))
    return [*gpus, torch.device("cpu")]


def _convolution(device: torch.device) -> Check:
    """Compare a convolution in fp32 on the device with one in fp64 on the CPU."""
    name = f"convolution on {device}"
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 64, 64, generator=generator)
    kernels = torch.randn(16, 3, 7, 7, generator=generator)
    try:
        result = _convolve(images.to(device), kernels.to(device)).cpu()
    except RuntimeError as error:
        hint = "the device is present but does not work: check the errors of its driver, or use --device cpu"
        return Check(name, "problem", first_line(error), hint)
    expected = _convolve(images.double(), kernels.double())
    difference = ((result - expected).norm() / expected.norm()).item()
    detail = f"differs from fp64 by {difference:.0e} of its norm"
    if difference < _MAX_DIFFERENCE:
        return Check(name, "ok", detail)
    return Check(name, "problem", detail, "results are wrong: do not serve on this device")


def _convolve(images: Tensor, kernels: Tensor) -> Tensor:
    return torch.nn.functional.conv2d(images, kernels, stride=2, padding=3)
