"""What a release consists of: distributions that can be built again, and a software bill of materials."""

import hashlib
import json
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from release import dist, sbom
from release.licenses import License, Policy, licenses
from release.lock import SERVING_LOCK, locked_versions
from resnet_service import __version__
from tests.support import REPOSITORY

pytestmark = pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="needs the git repository")


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the distributions of the last commit; they were built twice."""
    folder = tmp_path_factory.mktemp("dist")
    dist.main(folder)
    return folder


def test_two_builds_of_a_commit_have_the_same_bytes(distributions: Path) -> None:
    """Path, umask, time zone, and the order and times of files do not matter; SHA256SUMS has the hashes."""
    sums = (distributions / "SHA256SUMS").read_text()
    files = {path.name: path.read_bytes() for path in distributions.iterdir() if path.name != "SHA256SUMS"}
    assert {Path(name).suffix for name in files} == {".whl", ".gz"}
    assert sums.splitlines() == [
        f"{hashlib.sha256(files[name]).hexdigest()}  {name}" for name in sorted(files)
    ]


def test_the_archives_have_one_time_and_plain_modes(distributions: Path) -> None:
    """All files have the time of the commit, which ZIP rounds to two seconds, and mode 644 or 755."""
    [source] = distributions.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        assert {member.mtime for member in archive} == {dist.commit_time()}
        assert {oct(member.mode) for member in archive} <= {"0o644", "0o755"}
        assert {(member.uid, member.gid, member.uname) for member in archive} == {(0, 0, "")}
    [wheel] = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive_file:
        entries = archive_file.infolist()
    assert len({entry.date_time for entry in entries}) == 1
    assert {oct(entry.external_attr >> 16 & 0o777) for entry in entries} <= {"0o644", "0o755"}


def test_the_source_distribution_builds_the_same_wheel(distributions: Path, tmp_path: Path) -> None:
    """Who has the source distribution only can verify the wheel."""
    [source] = distributions.glob("*.tar.gz")
    [wheel] = distributions.glob("*.whl")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    again = dist.build(tmp_path / source.name.removesuffix(".tar.gz"), tmp_path / "out")
    assert again[wheel.name] == hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_a_build_that_differs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written if the second build has other bytes, here because of another time."""
    times = iter([1_700_000_000, 1_800_000_000])
    monkeypatch.setattr(dist, "commit_time", lambda: next(times))
    with pytest.raises(dist.BuildError, match="differ"):
        dist.main(tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


@pytest.fixture(scope="module")
def environment() -> dict[str, Any]:
    """Return the bill of materials of the whole environment."""
    return sbom.environment_sbom(epoch=1_700_000_000)


@pytest.fixture(scope="module")
def bill(environment: dict[str, Any]) -> dict[str, Any]:
    """Return the bill of materials of the packages for serving, after its text was validated."""
    locked = locked_versions(SERVING_LOCK)
    text = sbom.to_json(sbom.serving_sbom(environment, locked, licenses(locked, Policy.load())))
    result: dict[str, Any] = json.loads(text)
    return result


def test_the_bill_of_materials_has_the_packages_for_serving_only(bill: dict[str, Any]) -> None:
    """It has what the lock file names and is installed, with licenses, and no packages for development."""
    names = {canonicalize_name(component["name"]) for component in bill["components"]}
    assert {"torch", "fastapi", "pillow", "openvino", "grpcio"} <= names <= set(locked_versions(SERVING_LOCK))
    assert all(component["licenses"] for component in bill["components"])
    root = bill["metadata"]["component"]
    assert (root["name"], root["version"]) == ("resnet-service", __version__)
    assert bill["metadata"]["timestamp"].startswith("2023-11-14T22:13:20")


def test_every_component_is_reachable_from_the_service(bill: dict[str, Any]) -> None:
    """References exist, and each component is a dependency of the service or of another one."""
    edges = {entry["ref"]: entry.get("dependsOn", []) for entry in bill["dependencies"]}
    seen: set[str] = set()
    waiting = ["root-component"]
    while waiting:
        reference = waiting.pop()
        if reference not in seen:
            seen.add(reference)
            waiting += edges[reference]
    assert seen - {"root-component"} == {component["bom-ref"] for component in bill["components"]}


def test_another_version_than_the_locked_one_is_an_error(environment: dict[str, Any]) -> None:
    locked = {"torch": frozenset({"2.0.0"})}
    with pytest.raises(sbom.SBOMError, match=r"torch 2\.\S+ is installed, and requirements.lock has"):
        sbom.serving_sbom(environment, locked, {"torch": License("BSD-3-Clause", "")})


def test_a_bill_that_does_not_match_the_schema_is_an_error(bill: dict[str, Any]) -> None:
    with pytest.raises(sbom.SBOMError):
        sbom.to_json(bill | {"components": [{"name": "torch"}]})


def test_the_hashes_can_be_checked_with_sha256sum(distributions: Path) -> None:
    result = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=distributions, check=False)
    assert result.returncode == 0
