"""Limits of control groups: both versions, nested groups, namespaces of containers, and a real group."""

from pathlib import Path
from typing import Any

import pytest

from resnet_service.cgroups import cpu_limit, free_memory, memory_limit
from tests.support.cgroups import Files, output_in_cgroup, real_cgroup, write_cgroups

SERVICE = "/system.slice/classifier.service"
GIB = 2**30


def quota(cores: float) -> dict[str, str]:
    """Return the file of version 2 that limits CPU time."""
    return {"cpu.max": f"{round(cores * 100_000)} 100000"}


@pytest.mark.parametrize(
    ("files", "arguments", "expected"),
    [
        pytest.param({"/": quota(1.5)}, {}, 1.5, id="container with a private namespace"),
        pytest.param({SERVICE: quota(2)}, {"path": SERVICE}, 2, id="CPUQuota of a systemd service"),
        pytest.param(
            {SERVICE: {"cpu.max": "max 100000"}, "/system.slice": quota(3)},
            {"path": SERVICE},
            3,
            id="quota of the slice only",
        ),
        pytest.param(
            {SERVICE: quota(4), "/system.slice": quota(0.5)}, {"path": SERVICE}, 0.5, id="tighter slice"
        ),
        pytest.param(
            {SERVICE: quota(0.25), "/system.slice": quota(2)}, {"path": SERVICE}, 0.25, id="tighter service"
        ),
        pytest.param(
            {"/": quota(1)}, {"path": "/docker/1f2e", "top": "/docker/1f2e"}, 1, id="mount of the own group"
        ),
        pytest.param(
            {"/": quota(4), "/job": quota(1)},
            {"path": "/docker/1f2e/job", "top": "/docker/1f2e"},
            1,
            id="group inside a container",
        ),
        pytest.param(
            {"/": quota(1)}, {"path": "/docker/1f2e"}, 1, id="namespace of the host, mount of the container"
        ),
        pytest.param({"/": quota(1)}, {"path": "/../.."}, 1, id="moved out of the namespace"),
        pytest.param(
            {"/": quota(1), "/other": quota(9)},
            {"path": "/../other"},
            1,
            id="moved to a sibling of the namespace",
        ),
        pytest.param({"/": quota(1)}, {"path": "/", "top": "/../.."}, 1, id="mount from outside"),
        pytest.param({"/": {"cpu.max": "max 100000"}}, {}, None, id="unlimited"),
        pytest.param({"/": {"cpu.max": "max"}}, {}, None, id="unlimited without a period"),
        pytest.param({"/": {}}, {"path": SERVICE}, None, id="no controller"),
    ],
)
def test_tightest_cpu_quota_of_all_visible_groups_applies(
    files: Files, arguments: dict[str, Any], expected: float | None, tmp_path: Path
) -> None:
    """In version 2, the group of the process and all groups above it count."""
    write_cgroups(tmp_path, files, **arguments)
    assert cpu_limit(tmp_path) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/docker/1f2e": {"cpu.cfs_quota_us": "150000", "cpu.cfs_period_us": "100000"}}, 1.5),
        ({"/docker/1f2e": {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}}, None),
        (
            {
                "/docker/1f2e": {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"},
                "/docker": {"cpu.cfs_quota_us": "25000", "cpu.cfs_period_us": "50000"},
            },
            0.5,
        ),
    ],
    ids=["container", "unlimited", "parent"],
)
def test_cpu_quota_of_version_1_applies(files: Files, expected: float | None, tmp_path: Path) -> None:
    """The controllers `cpu` and `cpuacct` usually share a hierarchy, whose order of names varies."""
    for controller in ("memory", "cpu,cpuacct"):
        write_cgroups(tmp_path, files, path="/docker/1f2e", controller=controller, mount=f"/{controller}")
    assert cpu_limit(tmp_path) == expected


def test_hybrid_hierarchies_take_each_limit_from_where_its_controller_is(tmp_path: Path) -> None:
    """With version 1 for the CPU and version 2 for memory, or the reverse, both limits are found."""
    v1 = {SERVICE: {"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "100000"}}
    v2 = {SERVICE: {"memory.max": str(GIB), "memory.current": "0"}}
    write_cgroups(tmp_path, v1, path=SERVICE, controller="cpu", mount="/cpu")
    write_cgroups(tmp_path, v2, path=SERVICE, mount="/a folder/unified")
    assert (cpu_limit(tmp_path), memory_limit(tmp_path)) == (2, GIB)


def test_tightest_memory_limit_applies_and_the_page_cache_is_free(tmp_path: Path) -> None:
    """A group that is full only of files that were read still has memory for the service."""
    files = {
        SERVICE: {
            "memory.max": str(4 * GIB),
            "memory.high": str(3 * GIB),
            "memory.current": str(2 * GIB),
            "memory.stat": f"anon {GIB}\ninactive_file {GIB}",
        },
        "/system.slice": {
            "memory.max": str(8 * GIB),
            "memory.high": "max",
            "memory.current": str(15 * GIB // 2),
        },
    }
    write_cgroups(tmp_path, files, path=SERVICE)
    assert memory_limit(tmp_path) == 3 * GIB
    assert free_memory(tmp_path) == GIB // 2  # of the slice


def test_group_over_its_limit_has_no_free_memory(tmp_path: Path) -> None:
    """The result is 0 and never negative, for example after the limit has been lowered."""
    write_cgroups(tmp_path, {"/": {"memory.max": str(GIB), "memory.current": str(2 * GIB)}})
    assert free_memory(tmp_path) == 0


def test_memory_limit_of_version_1_applies(tmp_path: Path) -> None:
    """A group without a limit has a number beyond all memory there."""
    files = {
        "/pod/1f2e": {
            "memory.limit_in_bytes": "9223372036854771712",
            "memory.usage_in_bytes": str(GIB),
            "memory.stat": f"inactive_file 0\ntotal_inactive_file {GIB // 2}",
        },
        "/pod": {"memory.limit_in_bytes": str(2 * GIB), "memory.usage_in_bytes": str(GIB)},
    }
    write_cgroups(tmp_path, files, path="/pod/1f2e", controller="memory", mount="/memory")
    assert (memory_limit(tmp_path), free_memory(tmp_path)) == (2 * GIB, GIB)


def test_system_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    """Nothing is mounted, or there is no /proc at all (macOS)."""
    for _ in range(2):
        assert (cpu_limit(tmp_path), memory_limit(tmp_path), free_memory(tmp_path)) == (None, None, None)
        (tmp_path / "proc/self").mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc/self/cgroup").write_text(f"0::{SERVICE}\n")


def test_cores_of_a_real_group_are_those_of_the_quota_above_it() -> None:
    """A process in a group without a quota, below one with half a core, has one core."""
    try:
        with real_cgroup("cpu", v1={"cpu.cfs_quota_us": "50000"}, v2={"cpu.max": "50000 100000"}) as group:
            program = "from resnet_service.machine import *; print(available_cpus(), cpu_quota())"
            assert output_in_cgroup(group, program) == "1 1"
    except OSError as error:
        pytest.skip(f"this process may not create control groups: {error}")


def test_memory_of_a_real_group_is_that_of_the_limit_above_it() -> None:
    """A process in a group without a limit, below one with 256 MiB, has at most that."""
    limit = str(256 * 2**20)
    try:
        with real_cgroup("memory", v1={"memory.limit_in_bytes": limit}, v2={"memory.max": limit}) as group:
            program = "from resnet_service.machine import *; print(available_memory())"
            assert 200 * 2**20 < int(output_in_cgroup(group, program)) < 256 * 2**20
    except OSError as error:
        pytest.skip(f"this process may not create control groups: {error}")
