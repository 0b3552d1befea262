"""The hardware of this machine, and the CPUs and memory that this process may use."""

import math
import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from resnet_service import cgroups

ROOT: Final = Path("/")
"""The folder that contains `proc` and the mount points of control groups."""

_NATIVE_BF16_FLAGS: Final = {"avx512_bf16", "amx_bf16", "bf16"}
_RELEVANT_FLAGS: Final = _NATIVE_BF16_FLAGS | {
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "f16c", "fma"),
    *("asimd", "asimddp", "i8mm", "sve"),
}


@cache
def has_native_bf16() -> bool:
    """Return whether the CPU has bf16 dot products; emulated ones are slower than fp32."""
    return bool(_cpu_flags() & _NATIVE_BF16_FLAGS)


def instruction_sets() -> tuple[str, ...]:
    """Return the CPU's instruction sets that affect the speed of networks; empty if unknown (macOS)."""
    return tuple(sorted(_cpu_flags() & _RELEVANT_FLAGS))


@dataclass(frozen=True)
class HardwareInfo:
    """The hardware and software that a measurement depends on; stored with every result.

    Memory is in GiB; `cores` and `memory_gib` are what this process may use.
    """

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
    """Return the hardware information of this machine."""
    import torch  # not at the top: the client imports this module for its response models, without torch

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
    """Return the number of logical cores that the CPU affinity and the quota allow."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, cpu_quota() or count)


def cpu_quota() -> int | None:
    """Return the CPU quota in cores (`docker run --cpus`, systemd's CPUQuota), rounded up; None if unlimited.

    Libraries start one thread per visible core. With more threads than the quota, the kernel stops all of
    them in every period once the quota is used up.
    """
    limit = cgroups.cpu_limit(ROOT)
    return None if limit is None else max(1, math.ceil(limit))


def schedule_this_thread(*, for_throughput: bool) -> None:
    """Select how Linux schedules this thread, and those that it starts; does nothing on other systems.

    For throughput (SCHED_BATCH), a thread that becomes ready does not interrupt one that runs, so that busy
    threads alternate less often. On two cores without a network (146 KB, 64 connections), one process then
    answers 1.04 to 1.09 times the requests, two workers 1.14. Otherwise (SCHED_OTHER), it does.
    """
    if hasattr(os, "SCHED_BATCH"):
        with suppress(PermissionError):  # a container may forbid it
            policy = os.SCHED_BATCH if for_throughput else os.SCHED_OTHER
            os.sched_setscheduler(0, policy, os.sched_param(0))


def available_memory() -> int | None:
    """Return the bytes of memory that this process can still allocate, or None if unknown (macOS).

    The limits of the container or service are included.
    """
    meminfo = ROOT / "proc/meminfo"
    if not meminfo.exists():
        return None
    lines = dict(line.split(":") for line in meminfo.read_text(encoding="ascii").splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    in_groups = cgroups.free_memory(ROOT)
    return free if in_groups is None else min(free, in_groups)


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
    """Return the entries of the first processor in /proc/cpuinfo; empty if it does not exist (macOS)."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text(encoding="utf-8").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory_gib() -> float | None:
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return round(min(installed, cgroups.memory_limit(ROOT) or installed) / 2**30, 1)
