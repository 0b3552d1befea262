"""Whether this machine is fit to serve: what is there, what works, and what to do about what does not."""

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
from resnet_service.errors import ServiceError
from resnet_service.files import app_cache_dir
from resnet_service.images import FORMATS, Preprocessing, decode_image, synthetic
from resnet_service.machine import available_memory, hardware_info, has_native_bf16, instruction_sets

State = Literal["ok", "note", "problem"]

_OPTIONAL: Final = {
    "openvino": ("openvino", "the fastest way on x86 CPUs, and the only one for int8"),
    "nncf": ("quantize", "resnet-service quantize"),
    "matplotlib": ("train", "training, activations and the plots of reports"),
    "streamlit": ("ui", "resnet-service ui"),
    "opentelemetry-sdk": ("traces", "serve --traces-url"),
}
_MIN_DISK_BYTES: Final = 2 * 10**9
_MIN_MEMORY_BYTES: Final = 2 * 2**30
_TOLERANCE: Final = 1e-3


@dataclass(frozen=True)
class Check:
    """One thing looked at. A note is worth knowing; a problem keeps something from working."""

    name: str
    state: State
    detail: str
    hint: str = ""


def run_checks() -> Iterator[Check]:
    """Look at one thing after the other, the quick ones first; each is told as soon as it is known."""
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
    found = f"{sys.version.split()[0]} in {sys.prefix}"
    return Check("Python", "ok", found)


def _torch() -> Iterator[Check]:
    yield Check("PyTorch", "ok", torch.__version__)
    try:
        import torchvision

        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        torchvision.ops.nms(boxes, torch.ones(1), 0.5)  # of its own compiled code, which must fit PyTorch's
    except (ImportError, RuntimeError, AttributeError) as error:
        advice = "install the torchvision built for this PyTorch: pip install --upgrade torch torchvision"
        yield Check("torchvision", "problem", _first_line(error), advice)
    else:
        yield Check("torchvision", "ok", torchvision.__version__)


def _cuda() -> Check:
    reason = cuda_unavailable_reason()
    if reason is None:
        return Check("CUDA", "ok", f"{torch.version.cuda}, {torch.cuda.device_count()} GPUs")
    advice = ""
    if shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists():
        advice = (
            "there is an NVIDIA driver; in a container, start it with --gpus all (NVIDIA Container Toolkit), "
            "else install a PyTorch built for the driver's CUDA version: nvidia-smi shows it"
        )
    return Check("CUDA", "problem" if advice else "note", reason, advice)


def _gpus() -> Iterator[Check]:
    if not torch.cuda.is_available():
        return
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        try:
            free, _ = torch.cuda.mem_get_info(index)
        except RuntimeError as error:
            yield Check(f"GPU {index}", "problem", f"{gpu.name}: {_first_line(error)}", "look at nvidia-smi")
            continue
        found = (
            f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB ({free / 2**30:.0f} free), "
            f"compute capability {gpu.major}.{gpu.minor}"
        )
        yield Check(f"GPU {index}", "ok", found)


def _mps() -> Check:
    if torch.backends.mps.is_available():
        return Check("Apple MPS", "ok", "available")
    if torch.backends.mps.is_built():
        return Check("Apple MPS", "problem", "not available", "it needs macOS 14 and Apple silicon")
    return Check("Apple MPS", "note", "this build of PyTorch has none; only those for macOS do")


def _processor() -> Check:
    machine = hardware_info()
    sets = ", ".join(instruction_sets()) or "none known"
    found = f"{machine.processor}, {machine.architecture}, {machine.cores} cores, instruction sets: {sets}"
    if has_native_bf16():
        return Check("processor", "ok", f"{found}; bf16 is native, so --precision auto uses it")
    return Check("processor", "ok", f"{found}; no native bf16, so --precision auto is fp32")


def _memory() -> Check:
    free = available_memory()
    if free is None:
        return Check("memory", "note", "not known on this system")
    found = f"{free / 2**30:.1f} GiB free for this process"
    if free < _MIN_MEMORY_BYTES:
        return Check("memory", "problem", found, "PyTorch and a ResNet-152 need about 2 GiB")
    return Check("memory", "ok", found)


def _optional() -> Iterator[Check]:
    for package, (extra, use) in _OPTIONAL.items():
        try:
            yield Check(package, "ok", version(package))
        except PackageNotFoundError:
            advice = f"for {use}: pip install 'resnet-service[{extra}]'"
            yield Check(package, "note", "not installed", advice)


def _caches() -> Iterator[Check]:
    for about, folder in (
        ("weights", Path(torch.hub.get_dir())),
        ("compiled networks", app_cache_dir()),
    ):
        # What os.access cannot see, a folder in a folder that may not be entered, is none for it either.
        existing = next(path for path in (folder, *folder.absolute().parents) if os.access(path, os.F_OK))
        free = shutil.disk_usage(existing).free
        found = f"{folder}, {free / 1e9:.0f} GB free"
        if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
            advice = "set TORCH_HOME (weights) or XDG_CACHE_HOME to a folder that can be written"
            yield Check(f"cache of {about}", "problem", f"{folder} cannot be written", advice)
        elif free < _MIN_DISK_BYTES:
            yield Check(f"cache of {about}", "problem", found, "make room there")
        else:
            yield Check(f"cache of {about}", "ok", found)


def _decoder() -> Check:
    preprocessing = Preprocessing(232, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    for name, image in synthetic.synthetic_scenes().items():
        try:
            crop = decode_image(image, preprocessing)
        except ServiceError as error:
            return Check("decoder", "problem", str(error), "install Pillow and simplejpeg anew")
        if crop.std() == 0:
            return Check("decoder", "problem", f"the image of an {name} came out empty")
    return Check("decoder", "ok", f"reads {', '.join(FORMATS)}")


def _devices() -> list[torch.device]:
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        gpus.append(torch.device("mps"))
    return [*gpus, torch.device("cpu")]


def _convolution(device: torch.device) -> Check:
    """Convolve in fp32 on the device, and in fp64 on the CPU."""
    about = f"convolution on {device}"
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 64, 64, generator=generator)
    kernels = torch.randn(16, 3, 7, 7, generator=generator)
    try:
        computed = _convolved(images.to(device), kernels.to(device)).cpu()
    except RuntimeError as error:
        advice = "the device is there and does not work: look for its driver's errors, or use the device cpu"
        return Check(about, "problem", _first_line(error), advice)
    expected = _convolved(images.double(), kernels.double())
    difference = ((computed - expected).norm() / expected.norm()).item()
    found = f"differs from fp64 by {difference:.0e} of its norm"
    if difference < _TOLERANCE:
        return Check(about, "ok", found)
    return Check(about, "problem", found, "its answers are wrong: do not serve on it")


def _convolved(images: Tensor, kernels: Tensor) -> Tensor:
    return torch.nn.functional.conv2d(images, kernels, stride=2, padding=3)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
