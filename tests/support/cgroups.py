"""Control groups for tests: trees of files like those of the kernel, and real groups."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

from tests.support.sandbox import wait_for

Files = Mapping[str, Mapping[str, str]]
"""The files of groups, by the path of the group from the mount point."""

_MOUNT: Final = Path("/sys/fs/cgroup")


def write_cgroups(
    root: Path, files: Files, *, path: str = "/", top: str = "/", controller: str = "", mount: str = ""
) -> Path:
    """Write the files of one hierarchy and its lines in /proc/self below `root`; return the mount point.

    `path` is the group of the process and `top` the group at the mount point, as the kernel names them.
    `controller` is that of version 1; without it, the hierarchy has version 2. Can be called several times.
    """
    proc = root / "proc/self"
    proc.mkdir(parents=True, exist_ok=True)
    point = f"/sys/fs/cgroup{mount}"
    kind, options = ("cgroup", f"rw,{controller}") if controller else ("cgroup2", "rw,nsdelegate")
    with (proc / "cgroup").open("a") as file:
        file.write(f"{7 if controller else 0}:{controller}:{path}\n")
    with (proc / "mountinfo").open("a") as file:
        place = point.replace(" ", r"\040")
        file.write(f"31 23 0:28 {top} {place} rw,nosuid shared:4 master:2 - {kind} {kind} {options}\n")
    folder = root / point[1:]
    for group, texts in files.items():
        (folder / group[1:]).mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / group[1:] / name).write_text(f"{text}\n")
    return folder


@contextmanager
def real_cgroup(controller: str, *, v1: Mapping[str, str], v2: Mapping[str, str]) -> Iterator[Path]:
    """Create a real group with limits, and yield the folder of a group below it, which has none.

    `v1` and `v2` are the files to write, depending on the version of the machine. Raises OSError if this
    process may not do it.
    """
    folder = _MOUNT / controller
    is_v1 = folder.is_dir()
    parent = (folder if is_v1 else _MOUNT) / f"resnet-service-test-{uuid4().hex}"
    with ExitStack() as stack:
        for group in (parent, parent / "below"):
            group.mkdir()
            stack.callback(_remove, group)
        for name, value in (v1 if is_v1 else v2).items():
            (parent / name).write_text(value)
        yield parent / "below"


def _remove(group: Path) -> None:
    """Remove a group once its last process, which may just have been killed, has ended."""

    def is_removed() -> bool:
        try:
            group.rmdir()
        except OSError as error:
            if error.errno == errno.EBUSY:
                return False
            raise
        return True

    wait_for(is_removed)


@contextmanager
def limited(
    controller: str, pids: Iterable[int], *, v1: Mapping[str, str], v2: Mapping[str, str]
) -> Iterator[None]:
    """Run processes, and those that they start, with the limits of a group until the end of the block.

    See `real_cgroup`.
    """
    with real_cgroup(controller, v1=v1, v2=v2) as group:
        root = group.parent.parent
        _move(pids, group)
        try:
            yield
        finally:
            _move((group / "cgroup.procs").read_text(encoding="ascii").split(), root)


def _move(pids: Iterable[int | str], group: Path) -> None:
    for pid in pids:
        try:
            (group / "cgroup.procs").write_text(str(pid), encoding="ascii")
        except ProcessLookupError:
            continue  # it has ended


class MemoryGroup:
    """A group whose memory can be limited while its processes run.

    procs: the file that takes the processes.
    """

    def __init__(self, group: Path) -> None:
        self.procs = group / "cgroup.procs"
        self._group = group
        is_v1 = (group / "memory.usage_in_bytes").exists()
        self._limit = "memory.limit_in_bytes" if is_v1 else "memory.max"
        self._in_use = ("rss", "mapped_file") if is_v1 else ("anon", "file_mapped", "kernel")
        self._unlimited = "-1" if is_v1 else "max"

    @contextmanager
    def limited_to(self, more_bytes: int) -> Iterator[None]:
        """Allow the processes this much more memory than they have now, until the end of the block.

        The cache of files does not count: the kernel takes it away for what the processes need.
        """
        lines = (self._group / "memory.stat").read_text(encoding="ascii").splitlines()
        statistics = {name: int(value) for name, value in map(str.split, lines)}
        limit = sum(statistics[name] for name in self._in_use) + more_bytes
        (self._group / self._limit).write_text(str(limit), encoding="ascii")
        try:
            yield
        finally:
            (self._group / self._limit).write_text(self._unlimited, encoding="ascii")


def output_in_cgroup(group: Path, program: str) -> str:
    """Return what a Python program prints in a process of a group."""

    def join() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    return subprocess.run(
        [sys.executable, "-c", program], preexec_fn=join, capture_output=True, text=True, check=True
    ).stdout.strip()
