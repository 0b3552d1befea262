"""Build the container images and run their commands: `make container-test`.

A container engine and a registry are not needed. Buildah builds on a substitute for the base image, which
debootstrap creates from Debian packages; the CUDA image then runs on the CPU. The tests take minutes and
gigabytes, so `make test` and `make test-all` skip them. If PyTorch's own package index cannot be reached, set
TORCH_INDEX to another one (empty for pip's default); the CPU image then contains the CUDA packages too.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import pytest
import torch
from torchvision.models import resnet18

from monitoring.local import free_port
from tests.support import REPOSITORY
from tests.support.file_server import FileServer
from tests.support.images import encode, make_image

pytestmark = pytest.mark.container

IMAGE: Final = "resnet-service"
BASE: Final = "localhost/base"
ENVIRONMENT: Final = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
USER: Final = 10001
REQUIRED_DISK_BYTES: Final = 24 << 30
"""Three copies of the dependencies with the CUDA packages (built, packed and unpacked), plus a reserve."""
STARTUP_TIMEOUT_S: Final = 120


@dataclass
class Buildah:
    """Buildah with a separate image storage."""

    storage: tuple[str, ...]

    def command(self, *arguments: str) -> list[str]:
        return ["buildah", *self.storage, *arguments]

    def __call__(self, *arguments: str) -> str:
        """Run a buildah command and return its output; its log goes to standard error."""
        result = subprocess.run(
            self.command(*arguments), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True
        )
        return result.stdout.strip()


def pip_configuration() -> dict[str, str]:
    """Return the pip configuration of this machine, so that the build finds the same packages."""
    pip = [sys.executable, "-m", "pip", "config", "list"]
    output = subprocess.run(pip, capture_output=True, text=True, check=True).stdout
    pairs = (line.partition("=") for line in output.splitlines())
    return {key.removeprefix(":env:").removeprefix("global")[1:]: value.strip("'") for key, _, value in pairs}


def create_base_image(buildah: Buildah, folder: Path, name: str) -> None:
    """Commit a substitute for a base image: Debian, Python, and this machine's pip configuration and CAs."""
    root = folder / "root"
    packages = "--include=python3,python3-venv,ca-certificates"
    subprocess.run(
        ["debootstrap", "--variant=minbase", packages, "bookworm", root],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    configuration = pip_configuration()
    names = {"/etc/ssl/certs/ca-certificates.crt", *configuration.get("constraint", "").split()}
    for path in map(Path, sorted(names)):
        copy = root / path.relative_to("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    options = "".join(f"{key} = {value}\n" for key, value in configuration.items())
    (root / "etc" / "pip.conf").write_text(f"[global]\n{options}")
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, str(root), "/")
    buildah("commit", "--quiet", "--rm", container, name)
    shutil.rmtree(root)


@dataclass
class Container:
    """A container of the image, in which commands can be run."""

    buildah: Buildah
    name: str
    entrypoint: list[str]
    health_check: list[str]
    without_cuda: bool
    settings: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str) -> list[str]:
        """Return the command line that runs a command in the container, as the user of the image."""
        variables = [f"--env={name}={value}" for name, value in self.settings.items()]
        return self.buildah.command("run", *variables, self.name, "--", *command)

    @property
    def is_healthy(self) -> bool:
        """Whether the health check of the image passes."""
        check = self.run(*self.health_check)
        return subprocess.run(check, env=ENVIRONMENT, capture_output=True, check=False).returncode == 0

    @contextmanager
    def started(self, **settings: str) -> Iterator[tuple[httpx.Client, "subprocess.Popen[bytes]"]]:
        """Run the command of the image on a free port, and wait until it is healthy."""
        self.settings = {"RESNET_SERVICE_PORT": str(free_port()), **settings}
        with subprocess.Popen(self.run(*self.entrypoint), env=ENVIRONMENT) as process:
            try:
                deadline = time.monotonic() + STARTUP_TIMEOUT_S
                while not self.is_healthy:
                    assert process.poll() is None, "the container exited"
                    assert time.monotonic() < deadline, "the container did not become healthy"
                with httpx.Client(
                    base_url=f"http://127.0.0.1:{self.settings['RESNET_SERVICE_PORT']}"
                ) as client:
                    yield client, process
            finally:
                if process.poll() is None:
                    os.kill(innermost(process.pid), signal.SIGKILL)  # it would outlive buildah


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def container(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    """Yield a container of an image that was built with the weights of a ResNet-18 from a file server."""
    if os.geteuid() != 0 or not (shutil.which("buildah") and shutil.which("debootstrap")):
        pytest.skip("needs root, buildah and debootstrap (Debian's packages of these names)")
    dockerfile = REPOSITORY / f"Dockerfile.{request.param}"
    folder = tmp_path_factory.mktemp("image")
    if (free := shutil.disk_usage(folder).free) < REQUIRED_DISK_BYTES:
        pytest.skip(f"building needs {REQUIRED_DISK_BYTES >> 30} GiB of disk, and {free >> 30} are free")
    buildah = Buildah(("--root", str(folder / "storage"), "--runroot", str(folder / "run")))
    configuration = pip_configuration()
    torch_index = os.environ.get("TORCH_INDEX")
    sources = " ".join(configuration.get(key, "") for key in ("find-links", "index-url", "extra-index-url"))
    # The files of a local index are often next to it, so the build mounts the parent folder of the index.
    indexes = {
        str(Path(source.removeprefix("file://")).parent) for source in sources.split() if "file:" in source
    }
    folders = indexes | {source for source in sources.split() if Path(source).is_dir()}
    weights = folder / "weights"
    weights.mkdir()
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), weights / "resnet18.pth")
    try:
        create_base_image(buildah, folder, BASE)
        with FileServer(weights) as server:
            arguments = {
                "BASE": BASE,
                "MODEL": "resnet18",
                "WEIGHTS": f"{server.url}/resnet18.pth",
            }
            if torch_index is not None and request.param == "cpu":
                arguments["TORCH_INDEX"] = torch_index
            buildah(
                *("bud", "--format", "docker", "--pull-never", "--layers=false"),
                *(f"--volume={path}:{path}:ro" for path in sorted(folders)),
                *(f"--build-arg={name}={value}" for name, value in arguments.items()),
                *("--file", str(dockerfile), "--tag", IMAGE, str(REPOSITORY)),
            )
        config = json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]["config"]
        assert config["Healthcheck"]["Test"][0] == "CMD"
        name = buildah("from", "--pull-never", IMAGE)
        without_cuda = request.param == "cpu" and torch_index is None
        yield Container(
            buildah,
            name,
            [*config["Entrypoint"], *config["Cmd"]],
            config["Healthcheck"]["Test"][1:],
            without_cuda,
        )
    finally:
        buildah("umount", "--all")
        buildah("rm", "--all")
        subprocess.run(["umount", folder / "storage" / "overlay"], capture_output=True, check=False)
        shutil.rmtree(folder)


def innermost(process: int) -> int:
    """Return the last descendant of a process, in a chain of processes with one child each."""
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in children.read_text().split():
            return innermost(int(child))
    return process


def megabytes(folder: Path) -> int:
    """Return the disk usage of a folder."""
    return int(subprocess.check_output(["du", "-sm", folder], text=True).split()[0])


def owner(process: int) -> int:
    """Return the user id of a process."""
    return Path(f"/proc/{process}").stat().st_uid


def test_weights_in_the_image_are_served_without_network(container: Container) -> None:
    """The image serves its weights as its own user, after the file server of the weights was stopped."""
    with container.started() as (client, process):
        response = client.post("/predict", files={"file": encode(make_image())}).raise_for_status().json()
        assert response["model"] == "resnet18"
        assert len(response["predictions"]) == 5
        assert owner(innermost(process.pid)) == USER


def test_sigterm_drains_and_exits_with_0(container: Container) -> None:
    """SIGTERM drains the service, here with the model cifar10, and the exit status is 0."""
    with container.started(RESNET_SERVICE_MODEL="cifar10", RESNET_SERVICE_WEIGHTS="") as (client, process):
        assert client.get("/info").raise_for_status().json()["model"] == "cifar10"
        os.kill(innermost(process.pid), signal.SIGTERM)
        assert process.wait(60) == 0
    assert not container.is_healthy


def test_packages_without_pytorch_take_less_than_650_mb(container: Container) -> None:
    """Packages except PyTorch and its CUDA dependencies take less than 650 MB; CPU wheels omit the latter."""
    venv = Path(container.buildah("mount", container.name)) / "opt" / "venv"
    [packages] = venv.glob("lib/python3.*/site-packages")
    if container.without_cuda:
        assert not [*packages.glob("nvidia*"), *packages.glob("triton*")]
    pytorch = [packages / name for name in ("torch", "nvidia", "triton", "cuda")]
    total, *parts = (megabytes(path) for path in (venv, *filter(Path.exists, pytorch)))
    assert total - sum(parts) < 650
