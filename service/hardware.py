"""What this machine is: the device and precision to use, and a fingerprint for measurements.

Choosing is kept apart from executing: `service.runtimes` takes the device and precision as given.
"""

import math
import os
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

import torch

from service.errors import DeviceUnavailable

Precision = Literal["fp32", "tf32", "bf16", "fp16", "int8"]

CGROUP: Final = Path("/sys/fs/cgroup")
"""Where the kernel says what a container may take (control groups, version 2)."""

_NATIVE_BF16_FLAGS: Final = {"avx512_bf16", "amx_bf16", "bf16"}
_THAT_MATTER: Final = _NATIVE_BF16_FLAGS | {
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "f16c", "fma"),
    *("asimd", "asimddp", "i8mm", "sve"),
}


def choose_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; for "auto" CUDA, then Apple MPS, then CPU.

    Raises DeviceUnavailable where `name` is no device, or one that this machine does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceUnavailable(f"{name!r} is no device: use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        return torch.device("cuda", _cuda_index(device.index or 0))
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceUnavailable("mps was asked for, but this is no Mac with an Apple GPU; use cpu or auto")
    if device.type not in ("cpu", "mps"):
        raise DeviceUnavailable(f"{name!r} is not supported: use auto, cpu, cuda, cuda:N or mps")
    return torch.device(device.type)


def choose_devices(names: str = "auto") -> tuple[torch.device, ...]:
    """Return the devices called `names`, with commas between, as in "cuda:0,cuda:1": see `choose_device`.

    Raises DeviceUnavailable also where one is named twice.
    """
    devices = tuple(choose_device(name.strip()) for name in names.split(","))
    if len(set(devices)) < len(devices):
        raise DeviceUnavailable(f"{names!r} names a device twice; --instances N gives it N batches at a time")
    return devices


def why_no_cuda() -> str | None:
    """Say why there is no CUDA here; None where there is."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return "this build of PyTorch has no CUDA"
    return "PyTorch sees no usable NVIDIA GPU or driver"


def _cuda_index(index: int) -> int:
    if why := why_no_cuda():
        raise DeviceUnavailable(f"cuda was asked for, but {why}; use cpu or auto")
    if index >= torch.cuda.device_count():
        raise DeviceUnavailable(f"cuda:{index} was asked for, but there are {torch.cuda.device_count()} GPUs")
    return index


def choose_precision(device: torch.device, name: Precision | Literal["auto"] = "auto") -> Precision:
    """Return the precision called `name`; for "auto" the fastest that costs no accuracy.

    That is fp16 on CUDA (10 bits of mantissa, and a ResNet's activations stay far below its range),
    bf16 on CPUs that multiply it natively, fp32 elsewhere.

    Raises DeviceUnavailable for a precision that the device does not have.
    """
    if name == "auto":
        if device.type == "cuda":
            return "fp16"
        return "bf16" if device.type == "cpu" and has_native_bf16() else "fp32"
    if name == "tf32" and device.type != "cuda":
        raise DeviceUnavailable(f"tf32 exists on NVIDIA GPUs only, not on {device.type}")
    if name == "int8":
        raise DeviceUnavailable("int8 needs a quantised model: see resnet-service quantize --help")
    if name == "fp16" and device.type == "cpu":
        raise DeviceUnavailable("fp16 is not supported on the CPU; use bf16 or fp32")
    return name


def training_precision(device: torch.device) -> Literal["bf16", "fp32"]:
    """Return the precision to train in: bf16 where it is native, as fp16's gradients need scaling."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and has_native_bf16() else "fp32"


@cache
def has_native_bf16() -> bool:
    """Say whether the CPU has bf16 dot products; emulated ones are slower than fp32."""
    return bool(_cpu_flags() & _NATIVE_BF16_FLAGS)


def instruction_sets() -> tuple[str, ...]:
    """Return which of the CPU's instruction sets that matter to networks it has; () where nobody tells."""
    return tuple(sorted(_cpu_flags() & _THAT_MATTER))


@dataclass(frozen=True)
class Fingerprint:
    """What a measured figure must carry to be laid beside one from another machine."""

    os: str
    architecture: str
    processor: str
    cores: int
    memory_gib: float | None
    cpu_capability: str
    native_bf16: bool
    gpu: str | None
    gpu_memory_gib: float | None
    cuda: str | None
    python: str
    torch: str
    torch_threads: int


def fingerprint() -> Fingerprint:
    """Describe this machine; memory in GiB, `cores` are those this process may run on."""
    gpu, gpu_memory = None, None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu, gpu_memory = properties.name, round(properties.total_memory / 2**30, 1)
    elif torch.backends.mps.is_available():
        gpu = "Apple MPS"
    return Fingerprint(
        os=_operating_system(),
        architecture=platform.machine(),
        processor=_processor(),
        cores=cores(),
        memory_gib=_memory_gib(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        native_bf16=has_native_bf16(),
        gpu=gpu,
        gpu_memory_gib=gpu_memory,
        cuda=torch.version.cuda if torch.cuda.is_available() else None,
        python=platform.python_version(),
        torch=torch.__version__,
        torch_threads=torch.get_num_threads(),
    )


def cores() -> int:
    """Count the logical cores this process may use: its affinity, and its container's share of them."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, cpu_quota() or count)


def cpu_quota() -> int | None:
    """Return how many cores' time the container may take (`docker run --cpus`), rounded up; None if any.

    Libraries count the cores they see. With more threads than this all of them stand still, time and again,
    until the kernel's next period begins.
    """
    limit = CGROUP / "cpu.max"
    if not limit.exists():
        return None
    quota, period = limit.read_text(encoding="ascii").split()
    return None if quota == "max" else max(1, math.ceil(int(quota) / int(period)))


def free_memory() -> int | None:
    """Return the bytes of memory this process may still take, its container's limit included, if known."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    lines = dict(line.split(":") for line in meminfo.read_text(encoding="ascii").splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = (CGROUP / name for name in ("memory.max", "memory.current"))
    if limit.exists() and (most := limit.read_text(encoding="ascii").strip()) != "max":
        free = min(free, int(most) - int(used.read_text(encoding="ascii")))
    return free


def _operating_system() -> str:
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]}"
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return f"{platform.system()} {platform.release()}"


def _cpu_flags() -> set[str]:
    info = _cpuinfo()
    return set(info.get("flags", info.get("Features", "")).split())


def _processor() -> str:
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, check=True
        ).stdout.strip()
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


@cache
def _cpuinfo() -> dict[str, str]:
    """Read the first processor's entries in /proc/cpuinfo; none where there is no such file (macOS)."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text(encoding="utf-8").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory_gib() -> float | None:
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
