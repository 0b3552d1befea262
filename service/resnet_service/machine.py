"""This machine: its hardware, for measurements, and the CPUs and memory that this process may use."""

import math
import os
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import torch

CGROUP: Final = Path("/sys/fs/cgroup")
"""Where the kernel says what a container may take (control groups, version 2)."""

_NATIVE_BF16_FLAGS: Final = {"avx512_bf16", "amx_bf16", "bf16"}
_RELEVANT_FLAGS: Final = _NATIVE_BF16_FLAGS | {
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "f16c", "fma"),
    *("asimd", "asimddp", "i8mm", "sve"),
}


@cache
def has_native_bf16() -> bool:
    """Say whether the CPU has bf16 dot products; emulated ones are slower than fp32."""
    return bool(_cpu_flags() & _NATIVE_BF16_FLAGS)


def instruction_sets() -> tuple[str, ...]:
    """Return which of the CPU's instruction sets that matter to networks it has; () where nobody tells."""
    return tuple(sorted(_cpu_flags() & _RELEVANT_FLAGS))


@dataclass(frozen=True)
class HardwareInfo:
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


def hardware_info() -> HardwareInfo:
    """Describe this machine; memory in GiB, `cores` are those this process may run on."""
    gpu, gpu_memory = None, None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu, gpu_memory = properties.name, round(properties.total_memory / 2**30, 1)
    elif torch.backends.mps.is_available():
        gpu = "Apple MPS"
    return HardwareInfo(
        os=_operating_system(),
        architecture=platform.machine(),
        processor=_processor(),
        cores=available_cpus(),
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


def available_cpus() -> int:
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


def available_memory() -> int | None:
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
