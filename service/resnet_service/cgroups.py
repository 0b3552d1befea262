"""The limits of the control groups of this process, of version 1 and 2: CPU time and memory.

A limit can belong to the group of the process (a container, a systemd service) or to any group above it (a
pod, a slice). The tightest one applies. loky and dask read the group at the mount point only; psutil, none.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, Literal, NamedTuple

_Controller = Literal["cpu", "memory"]
_DEFAULT_PERIOD_US: Final = 100_000
_PAGE_CACHE: Final = ("inactive_file", "total_inactive_file")
"""Memory that the kernel frees when it is needed, in version 2 and 1 (with the groups below)."""


def cpu_limit(root: Path) -> float | None:
    """Return the CPU time that the groups allow, in cores, or None if it is unlimited or unknown.

    `root` is the folder that contains `proc` and the mount points of the groups: `/`, except in tests.
    """
    limits = []
    for group in _groups(root, "cpu"):
        if group.version == 2:
            quota, _, period = group.read("cpu.max").partition(" ")
        else:
            quota, period = group.read("cpu.cfs_quota_us"), group.read("cpu.cfs_period_us")
        if quota.isdecimal():  # not "max", -1 or missing
            limits.append(int(quota) / int(period or _DEFAULT_PERIOD_US))
    return min(limits, default=None)


def memory_limit(root: Path) -> int | None:
    """Return the bytes of memory that the groups allow, or None if they are unlimited or unknown.

    Version 1 has no word for unlimited but a number beyond the memory of any machine, which is returned.
    """
    return min((limit for group in _groups(root, "memory") for limit in group.memory_limits()), default=None)


def free_memory(root: Path) -> int | None:
    """Return the bytes that can be allocated until a group reaches its limit, or None as for `memory_limit`.

    Files in the page cache count as free.
    """
    free = []
    for group in _groups(root, "memory"):
        usage = group.read("memory.current" if group.version == 2 else "memory.usage_in_bytes")
        if usage.isdecimal():
            used = int(usage) - group.cached_bytes()
            free += [max(0, limit - used) for limit in group.memory_limits()]
    return min(free, default=None)


class _Group(NamedTuple):
    """The folder of a group, in a hierarchy of version 1 or 2."""

    folder: Path
    version: Literal[1, 2]

    def read(self, name: str) -> str:
        """Return the text of a file; empty if it does not exist or must not be read."""
        try:
            return (self.folder / name).read_text(encoding="ascii").strip()
        except OSError:
            return ""

    def memory_limits(self) -> list[int]:
        """Return the limits in bytes; beyond `memory.high`, the kernel slows all allocations down."""
        names = ("memory.max", "memory.high") if self.version == 2 else ("memory.limit_in_bytes",)
        return [int(limit) for name in names if (limit := self.read(name)).isdecimal()]

    def cached_bytes(self) -> int:
        lines = (line.partition(" ") for line in self.read("memory.stat").splitlines())
        return max((int(value) for key, _, value in lines if key in _PAGE_CACHE), default=0)


class _Mount(NamedTuple):
    """Where a hierarchy is mounted: `top` is the group at the mount point `folder`."""

    top: str
    folder: Path
    version: Literal[1, 2]


def _groups(root: Path, controller: _Controller) -> Iterator[_Group]:
    """Yield the group of this process and all groups above it that can be seen, in both versions.

    Groups above the mount point of a container cannot be seen.
    """
    for version, path in _paths(root, controller):
        for mount in _mounts(root, controller):
            if mount.version == version:
                below = _below(path, mount.top)
                folders = [mount.folder / below, *(mount.folder / parent for parent in below.parents)]
                yield from (_Group(folder, version) for folder in folders)
                break


def _below(path: str, top: str) -> PurePosixPath:
    """Return the path of a group relative to the group at the mount point.

    If the mount does not contain the group (the process has moved, or the container has its own mount but the
    namespace of the host), that is the mount point: usually the group of the container.
    """
    if ".." not in PurePosixPath(path).parts and PurePosixPath(path).is_relative_to(top):
        return PurePosixPath(path).relative_to(top)
    return PurePosixPath()


def _paths(root: Path, controller: _Controller) -> Iterator[tuple[Literal[1, 2], str]]:
    """Yield the group of this process in the hierarchies of `/proc/self/cgroup` that can have the limit."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield 2, path
        elif controller in controllers.split(","):
            yield 1, path


def _mounts(root: Path, controller: _Controller) -> Iterator[_Mount]:
    """Yield the mounted hierarchies of `/proc/self/mountinfo` that can have the limit."""
    for line in _lines(root / "proc/self/mountinfo"):
        place, _, file_system = line.partition(" - ")
        kind, _, options = file_system.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.rpartition(" ")[2].split(",")):
            top, folder = (_unescape(field) for field in place.split(" ")[3:5])
            yield _Mount(top, root / folder.lstrip("/"), 2 if kind == "cgroup2" else 1)


def _unescape(field: str) -> str:
    """Decode the octal numbers that stand for white space."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _lines(path: Path) -> list[str]:
    """Return the lines of a file of /proc; none if it does not exist (macOS)."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
