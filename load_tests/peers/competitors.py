"""Who is compared, and how each is started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import httpx

from monitoring.local import free_port

_REPOSITORY: Final = Path(__file__).parents[2]
_SERVERS: Final = "load_tests.peers.servers"
_PATIENCE_S: Final = 90.0


@dataclass(frozen=True)
class Competitor:
    """One server: what follows its Python's path on the command line, its route, and what pip installs."""

    name: str
    command: tuple[str, ...]
    route: str = "/predict"
    body: Literal["multipart", "raw"] = "multipart"
    requirement: str | None = None


PEERS: Final = (
    Competitor("FastAPI by hand", ("-m", f"{_SERVERS}.by_hand")),
    Competitor("LitServe", ("-m", f"{_SERVERS}.with_litserve"), requirement="litserve==0.2.19"),
    Competitor(
        "BentoML",
        ("-m", "bentoml", "serve", f"{_SERVERS}.with_bentoml:Resnet", "--host", "127.0.0.1"),
        requirement="bentoml==1.4.39",
    ),
    Competitor("Mosec", ("-m", f"{_SERVERS}.with_mosec"), "/inference", "raw", "mosec==0.9.8"),
    Competitor("Ray Serve", ("-m", f"{_SERVERS}.with_ray_serve"), "/", "raw", "ray[serve]==2.60.0"),
)


def python_of(contestant: Competitor, folder: Path) -> Path:
    """Return the Python that has the contestant installed, in a virtual environment that is made once.

    It sees this Python's packages too, so that all run the same PyTorch.
    """
    if contestant.requirement is None:
        return Path(sys.executable)
    name, _, version = contestant.requirement.partition("==")
    environment = folder / f"{name.partition('[')[0]}-{version}"
    python = environment / "bin" / "python"
    if not (environment / ".installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        [packages] = environment.glob("lib/python3.*/site-packages")
        [ours] = (path for path in sys.path if path.endswith("site-packages"))
        (packages / "shared.pth").write_text(ours)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", contestant.requirement], check=True)
        (environment / ".installed").touch()
    return python


@contextmanager
def started(command: tuple[str, ...], python: Path, log: Path, **environment: str) -> Iterator[int]:
    """Run a server until the block ends, with all the processes it starts; yields its port at once."""
    port = free_port()
    if "bentoml" in command:
        command = (*command, "--port", str(port))
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [str(python), *command],
            cwd=_REPOSITORY,
            env={**os.environ, **environment, "PORT": str(port), "RESNET_SERVICE_PORT": str(port)},
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


def wait_until_it_answers(url: str, image: bytes, body: str) -> None:
    """Ask until an image is answered; raises TimeoutError where that takes minutes."""
    ends = time.monotonic() + _PATIENCE_S
    while time.monotonic() < ends:
        try:
            if body == "raw":
                answer = httpx.post(url, content=image, headers={"Content-Type": "image/jpeg"}, timeout=60)
            else:
                answer = httpx.post(url, files={"file": ("image.jpg", image, "image/jpeg")}, timeout=60)
            if answer.is_success:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.2)
    raise TimeoutError(f"{url} never answered")
