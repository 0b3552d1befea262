"""The servers of the comparison, and how each is installed, started and stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from load_tests.service import LoadTestError
from load_tests.wrk import BodyFormat
from monitoring.local import free_port

THIS_SERVICE: Final = "this service"

_REPOSITORY: Final = Path(__file__).parents[2]
_SERVERS: Final = "load_tests.peers.servers"
_START_TIMEOUT_S: Final = 90.0


@dataclass(frozen=True)
class Competitor:
    """One server: the arguments of its Python, its route and body format, and what pip installs."""

    name: str
    command: tuple[str, ...]
    route: str = "/predict"
    body_format: BodyFormat = "multipart"
    requirement: str | None = None


PEERS: Final = (
    Competitor("plain FastAPI", ("-m", f"{_SERVERS}.plain_fastapi")),
    Competitor("LitServe", ("-m", f"{_SERVERS}.with_litserve"), requirement="litserve==0.2.19"),
    Competitor(
        "BentoML",
        ("-m", "bentoml", "serve", f"{_SERVERS}.with_bentoml:Resnet", "--host", "127.0.0.1"),
        requirement="bentoml==1.4.39",
    ),
    Competitor("Mosec", ("-m", f"{_SERVERS}.with_mosec"), "/inference", "raw", "mosec==0.9.8"),
    Competitor("Ray Serve", ("-m", f"{_SERVERS}.with_ray_serve"), "/", "raw", "ray[serve]==2.60.0"),
)


def python_of(competitor: Competitor, folder: Path) -> Path:
    """Return a Python that has the competitor installed, in a virtual environment under `folder`.

    The environment is created once. It also uses the packages of this Python, so that all servers run the
    same PyTorch.
    """
    if competitor.requirement is None:
        return Path(sys.executable)
    name, _, version = competitor.requirement.partition("==")
    environment = folder.absolute() / f"{name.partition('[')[0]}-{version}"
    python = environment / "bin" / "python"
    if not (environment / ".installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        [packages] = environment.glob("lib/python3.*/site-packages")
        [shared] = (path for path in sys.path if path.endswith("site-packages"))
        (packages / "shared.pth").write_text(shared)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", competitor.requirement], check=True)
        (environment / ".installed").touch()
    return python


@contextmanager
def run_competitor(competitor: Competitor, python: Path, log: Path, **environment: str) -> Iterator[int]:
    """Run a server and all its processes until the block ends, and yield its port at once."""
    port = free_port()
    command = competitor.command
    if "bentoml" in command:
        command = (*command, "--port", str(port))
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [str(python), *command],
            cwd=_REPOSITORY,
            env={
                **os.environ,
                **environment,
                "PORT": str(port),
                "RESNET_SERVICE_PORT": str(port),
                "RESNET_SERVICE_MANAGEMENT_PORT": str(free_port()),
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield port
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def wait_until_ready(url: str, image: bytes, body_format: BodyFormat) -> None:
    """Post an image until the response is a success; raises LoadTestError after 90 s."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if body_format == "raw":
                response = httpx.post(url, content=image, headers={"Content-Type": "image/jpeg"}, timeout=60)
            else:
                response = httpx.post(url, files={"file": ("image.jpg", image, "image/jpeg")}, timeout=60)
            if response.is_success:
                return
        except httpx.TransportError:
            pass  # the server does not listen yet
        time.sleep(0.2)
    raise LoadTestError(f"no successful response from {url} within {_START_TIMEOUT_S:.0f} s")
