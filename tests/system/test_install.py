"""Lock files and installation from them, with a local index in place of PyPI and of PyTorch's index."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from release.lock import SERVING_LOCK, locked_versions
from tests.support import REPOSITORY
from tests.support.file_server import FileServer

SCRIPT = REPOSITORY / "deploy" / "install_packages.py"
CUDA = {"nvidia_cublas-13.1", "triton-3.8", "cuda_toolkit-13.0"}
OTHERS = {"tritonclient-2.73", "pillow-13.0"}


def write_wheel(folder: Path, name: str, version: str) -> str:
    """Write an empty wheel where an index has it, and return its hash."""
    project = folder / name.replace("_", "-")
    project.mkdir(parents=True, exist_ok=True)
    path = project / f"{name}-{version}-py3-none-any.whl"
    metadata = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in metadata.items():
            wheel.writestr(f"{name}-{version}.dist-info/{file}", text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_page(project: Path, digest: str) -> None:
    """Write the page of a project on an index, with the hash of its wheel."""
    [wheel] = project.glob("*.whl")
    fragment = f"#sha256={digest}" if digest else ""
    (project / "index.html").write_text(f'<a href="{quote(wheel.name)}{fragment}">{wheel.name}</a>')


@dataclass
class Installation:
    """Two indexes, a lock file, and the folder that packages are installed into."""

    server: FileServer
    lock: Path
    target: Path

    def run(self, *options: str, torch_index: str | None = None) -> subprocess.CompletedProcess[str]:
        """Install the packages of the lock file."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        environment |= {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"{self.server.url}/default",
            "PIP_NO_CACHE_DIR": "1",
            "PIP_RETRIES": "0",
            "PIP_TARGET": str(self.target),
        }
        if torch_index is not None:
            environment["TORCH_INDEX"] = torch_index
        command = [sys.executable, str(SCRIPT), *options, str(self.lock)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def packages(self) -> set[str]:
        """Return the names and versions of the installed packages."""
        return {path.name.removesuffix(".dist-info") for path in self.target.glob("*.dist-info")}


@pytest.fixture
def installation(file_server: FileServer, tmp_path: Path) -> Installation:
    default, cpu = file_server.folder / "default", file_server.folder / "cpu"
    lines = []
    for package in sorted({"torch-2.14", "torchvision-0.29"} | CUDA | OTHERS):
        name, _, version = package.partition("-")
        digest = write_wheel(default, name, version)
        lines.append(f"{name.replace('_', '-')}=={version} \\\n    --hash=sha256:{digest}\n    # via torch\n")
    for name, version in (("torch", "2.14+cpu"), ("torchvision", "0.29+cpu")):
        write_wheel(cpu, name, version)
    lock = tmp_path / "requirements.lock"
    lock.write_text("".join(lines))
    return Installation(file_server, lock, tmp_path / "packages")


def lock_cpu_wheels(installation: Installation, **hashes: str) -> None:
    """Write a lock file of the CPU wheels; `hashes` replaces those of the index."""
    lines = []
    for name, version in (("torch", "2.14+cpu"), ("torchvision", "0.29+cpu")):
        [wheel] = (installation.server.folder / "cpu" / name).iterdir()
        digest = hashes.get(name, hashlib.sha256(wheel.read_bytes()).hexdigest())
        lines.append(f"{name}=={version} \\\n    --hash=sha256:{digest}\n")
    installation.lock.with_name("requirements-cpu.lock").write_text("".join(lines))


def test_cpu_wheels_come_without_cuda(installation: Installation) -> None:
    """The same versions from PyTorch's index, and everything else from the lock file."""
    result = installation.run(torch_index=f"{installation.server.url}/cpu")
    assert result.returncode == 0, result.stderr
    assert installation.packages() == {"torch-2.14+cpu", "torchvision-0.29+cpu"} | OTHERS


def test_cpu_wheels_are_installed_with_their_hashes(installation: Installation) -> None:
    """The lock file of the CPU wheels is used if it has hashes, and a message says if it has none."""
    index = f"{installation.server.url}/cpu"
    assert "torch==2.14, torchvision==0.29" in installation.run(torch_index=index).stdout
    shutil.rmtree(installation.target)
    lock_cpu_wheels(installation)
    result = installation.run(torch_index=index)
    assert result.returncode == 0, result.stderr
    assert "installed by version" not in result.stdout
    assert installation.packages() == {"torch-2.14+cpu", "torchvision-0.29+cpu"} | OTHERS


def test_cpu_wheel_with_another_hash_is_not_installed(installation: Installation) -> None:
    lock_cpu_wheels(installation, torchvision="0" * 64)
    result = installation.run(torch_index=f"{installation.server.url}/cpu")
    assert result.returncode != 0
    assert "DO NOT MATCH" in result.stderr
    assert installation.packages() == set()


def test_lock_file_of_other_cpu_wheels_is_an_error(installation: Installation) -> None:
    lock_cpu_wheels(installation)
    installation.lock.write_text(installation.lock.read_text().replace("torch==2.14", "torch==2.15"))
    result = installation.run(torch_index=f"{installation.server.url}/cpu")
    assert result.returncode != 0
    assert "run make lock-cpu" in result.stderr
    assert installation.packages() == set()


def test_the_lock_file_of_cpu_wheels_has_the_hashes_of_the_index(
    file_server: FileServer, tmp_path: Path
) -> None:
    """The command writes the versions of requirements.lock; --check fails if the index has other hashes."""
    hashes = {}
    for name in ("torch", "torchvision"):
        [version] = locked_versions(SERVING_LOCK)[name]
        hashes[name] = write_wheel(file_server.folder / "cpu", name, f"{version}+cpu")
        write_page(file_server.folder / "cpu" / name, hashes[name])
    output = tmp_path / "requirements-cpu.lock"
    command = [
        sys.executable,
        "-m",
        "release.cpu_lock",
        f"--index={file_server.url}/cpu",
        f"--output={output}",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    environment["UV_NO_CACHE"] = "1"
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True)
    assert re.findall(r"^(\w+)==.*\+cpu \\\n    --hash=sha256:(\w+)$", output.read_text(), re.MULTILINE) == [
        *hashes.items()
    ]
    check = [*command, "--check"]
    subprocess.run(check, cwd=REPOSITORY, env=environment, check=True)
    for digest, message in (
        ("0" * 64, "requirements-cpu.lock is not current"),
        ("", "has no hashes for torch"),
    ):
        write_page(file_server.folder / "cpu/torch", digest)
        result = subprocess.run(
            check, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 1
        assert message in result.stderr


def test_default_index_is_used_if_the_index_cannot_be_reached(installation: Installation) -> None:
    result = installation.run(torch_index="http://127.0.0.1:9/cpu")
    assert result.returncode == 0, result.stderr
    assert installation.packages() == {"torch-2.14", "torchvision-0.29"} | CUDA | OTHERS
    assert "http://127.0.0.1:9/cpu cannot be reached" in result.stdout


def test_empty_index_is_the_default_index(installation: Installation) -> None:
    assert installation.run(torch_index="").returncode == 0
    assert installation.packages() >= CUDA


def test_required_index_that_cannot_be_reached_is_an_error(installation: Installation) -> None:
    """A CPU image must not silently contain CUDA."""
    assert installation.run("--require-index", torch_index="http://127.0.0.1:9/cpu").returncode != 0
    assert installation.packages() == set()


def test_package_with_another_hash_is_not_installed(installation: Installation) -> None:
    write_wheel(installation.server.folder / "default", "pillow", "13.0")
    lock = installation.lock.read_text()
    installation.lock.write_text(re.sub(r"(pillow==.*\n.*sha256:)\w{4}", r"\g<1>0000", lock))
    result = installation.run(torch_index=f"{installation.server.url}/cpu")
    assert result.returncode != 0
    assert "DO NOT MATCH" in result.stderr
    assert not any(package.startswith("pillow") for package in installation.packages())
