"""The Dockerfiles, really built, and their commands really run: `make image-test`.

No engine and no registry are needed: buildah builds over a stand-in for the base image, which debootstrap
makes of Debian's packages; the CUDA image runs on the CPU then. It takes minutes and gigabytes, so
`make test` leaves it out. Where PyTorch's own index cannot be reached, TORCH_INDEX names another, and the CPU
image has CUDA's packages too.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import torch
from torchvision.models import resnet18

from monitoring.local import free_port
from tests.support import REPOSITORY
from tests.support.file_server import FileServer
from tests.support.images import encode, make_image

IMAGE = "resnet-service"
ENVIRONMENT = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
USER = 10001
ROOM = 24 << 30
"""Three times the dependencies with CUDA's packages (built, packed and unpacked), and some to spare."""


@dataclass
class Buildah:
    """Buildah with a storage of its own."""

    storage: tuple[str, ...]

    def command(self, *arguments: str) -> list[str]:
        return ["buildah", *self.storage, *arguments]

    def __call__(self, *arguments: str) -> str:
        """Run it and return what it prints; its own log goes to the test's."""
        result = subprocess.run(
            self.command(*arguments), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True
        )
        return result.stdout.strip()


def pip_configuration() -> dict[str, str]:
    """Return what pip is told on this machine, since the build must find the same packages."""
    pip = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(pip, capture_output=True, text=True, check=True).stdout
    pairs = (line.partition("=") for line in listed.splitlines())
    return {key.removeprefix(":env:").removeprefix("global")[1:]: value.strip("'") for key, _, value in pairs}


def make_base(buildah: Buildah, folder: Path, name: str) -> None:
    """Commit a stand-in for a base image: Debian with Python, and this machine's pip and CAs."""
    root = folder / "root"
    packages = "--include=python3,python3-venv,ca-certificates"
    subprocess.run(
        ["debootstrap", "--variant=minbase", packages, "bookworm", root],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    authorities = Path("etc/ssl/certs/ca-certificates.crt")
    shutil.copy(Path("/") / authorities, root / authorities)
    options = "".join(f"{key} = {value}\n" for key, value in pip_configuration().items())
    (root / "etc" / "pip.conf").write_text(f"[global]\n{options}")
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, str(root), "/")
    buildah("commit", "--quiet", "--rm", container, name)
    shutil.rmtree(root)


@dataclass
class Container:
    """A container of the image, whose command can be run."""

    buildah: Buildah
    name: str
    entrypoint: list[str]
    health_check: list[str]
    without_cuda: bool
    settings: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str) -> list[str]:
        """Return the line that runs a command in it, as the user that the image says."""
        variables = [f"--env={name}={value}" for name, value in self.settings.items()]
        return self.buildah.command("run", *variables, self.name, "--", *command)

    @property
    def healthy(self) -> bool:
        """Whether the image's own health check passes."""
        check = self.run(*self.health_check)
        return subprocess.run(check, env=ENVIRONMENT, capture_output=True, check=False).returncode == 0

    @contextmanager
    def started(self, **settings: str) -> Iterator[tuple[httpx.Client, "subprocess.Popen[bytes]"]]:
        """Run the image's own command until it is healthy, on a free port."""
        self.settings = {"RESNET_SERVICE_PORT": str(free_port()), **settings}
        with subprocess.Popen(self.run(*self.entrypoint), env=ENVIRONMENT) as process:
            try:
                ends = time.monotonic() + 120
                while not self.healthy:
                    assert process.poll() is None, "it ended"
                    assert time.monotonic() < ends, "it never became healthy"
                with httpx.Client(
                    base_url=f"http://127.0.0.1:{self.settings['RESNET_SERVICE_PORT']}"
                ) as client:
                    yield client, process
            finally:
                if process.poll() is None:
                    os.kill(innermost(process.pid), signal.SIGKILL)  # buildah's own end would leave it behind


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def container(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    """A container of a Dockerfile's image, built with a ResNet-18 from a file server baked in."""
    if os.geteuid() != 0 or not (shutil.which("buildah") and shutil.which("debootstrap")):
        pytest.skip("needs root, buildah and debootstrap (Debian's packages of these names)")
    dockerfile = REPOSITORY / f"Dockerfile.{request.param}"
    base = re.findall("^ARG BASE=(.+)", dockerfile.read_text(), re.MULTILINE)[0]
    folder = tmp_path_factory.mktemp("image")
    if (free := shutil.disk_usage(folder).free) < ROOM:
        pytest.skip(f"building needs {ROOM >> 30} GiB of disk, and {free >> 30} are free")
    buildah = Buildah(("--root", str(folder / "storage"), "--runroot", str(folder / "run")))
    configuration = pip_configuration()
    torch_index = os.environ.get("TORCH_INDEX")
    places = " ".join(configuration.get(key, "") for key in ("find-links", "index-url", "extra-index-url"))
    # An index's files often lie beside it, so the folder above an index is what the build needs to see.
    indexes = {
        str(Path(place.removeprefix("file://")).parent) for place in places.split() if "file:" in place
    }
    folders = indexes | {place for place in places.split() if Path(place).is_dir()}
    weights = folder / "weights"
    weights.mkdir()
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), weights / "resnet18.pth")
    try:
        make_base(buildah, folder, base)
        with FileServer(weights) as server:
            arguments = {
                "MODEL": "resnet18",
                "WEIGHTS": f"{server.url}/resnet18.pth",
            }
            if torch_index and request.param == "cpu":
                arguments["TORCH_INDEX"] = torch_index
            buildah(
                *("bud", "--format", "docker", "--pull-never", "--layers=false"),
                *(f"--volume={place}:{place}:ro" for place in sorted(folders)),
                *(f"--build-arg={name}={value}" for name, value in arguments.items()),
                *("--file", str(dockerfile), "--tag", IMAGE, str(REPOSITORY)),
            )
        built = json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]["config"]
        assert built["Healthcheck"]["Test"][0] == "CMD"
        name = buildah("from", "--pull-never", IMAGE)
        without_cuda = request.param == "cpu" and not torch_index
        yield Container(
            buildah,
            name,
            [*built["Entrypoint"], *built["Cmd"]],
            built["Healthcheck"]["Test"][1:],
            without_cuda,
        )
    finally:
        buildah("umount", "--all")
        buildah("rm", "--all")
        subprocess.run(["umount", folder / "storage" / "overlay"], capture_output=True, check=False)
        shutil.rmtree(folder)


def innermost(process: int) -> int:
    """Return the process at the end of a chain of only children."""
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in children.read_text().split():
            return innermost(int(child))
    return process


def megabytes(folder: Path) -> int:
    """Return what a folder takes on the disk."""
    return int(subprocess.check_output(["du", "-sm", folder], text=True).split()[0])


def owner(process: int) -> int:
    """Return the user that a process runs as."""
    return Path(f"/proc/{process}").stat().st_uid


def test_what_was_baked_in_is_served_without_the_network(container: Container) -> None:
    """The image's command, as its own user, serves the baked weights, whose file server has gone."""
    with container.started() as (client, process):
        answer = client.post("/predict", files={"file": encode(make_image())}).raise_for_status().json()
        assert answer["model"] == "resnet18"
        assert len(answer["predictions"]) == 5
        assert owner(innermost(process.pid)) == USER


def test_sigterm_ends_the_container_with_0(container: Container) -> None:
    """A SIGTERM to the container's command, here with the bundled model, drains it and ends it with 0."""
    with container.started(RESNET_SERVICE_MODEL="bundled", RESNET_SERVICE_WEIGHTS="") as (client, process):
        assert client.get("/info").raise_for_status().json()["model"] == "bundled"
        os.kill(innermost(process.pid), signal.SIGTERM)
        assert process.wait(60) == 0
    assert not container.healthy


def test_the_image_is_small_beside_pytorch(container: Container) -> None:
    """Without PyTorch and what it brings for CUDA, which CPU wheels leave out, packages take under 600 MB."""
    venv = Path(container.buildah("mount", container.name)) / "opt" / "venv"
    [packages] = venv.glob("lib/python3.*/site-packages")
    if container.without_cuda:
        assert not [*packages.glob("nvidia*"), *packages.glob("triton*")]
    pytorch = [packages / name for name in ("torch", "nvidia", "triton", "cuda")]
    whole, *parts = (megabytes(place) for place in (venv, *filter(Path.exists, pytorch)))
    assert whole - sum(parts) < 600
