"""Every command that README.md and docs/ show is run, as a reader would type it.

They are run page by page in a folder that has what the pages speak of, with few images and few epochs. What
cannot be run here, or takes too long, is in ELSEWHERE with what shows it instead.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet50

from monitoring.local import free_port
from resnet_service.models import load_model, weights_path
from tests.support import REAL_IMAGES, REPOSITORY
from tests.support.images import encode, make_image
from tests.support.server import Running

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]

ELSEWHERE = {
    "make test": ".ci/run",
    "make load-test": "tests/system/test_load_tests.py",  # minutes
    "make reliability": "tests/system/test_reliability.py",  # an hour
    ".venv/bin/python -m load_tests.reliability": "tests/system/test_reliability.py",  # minutes
    "make compare-peers": "tests/system/test_load_tests.py",  # minutes, and five servers to install
    "docker compose": "tests/unit/test_compose.py",
    "docker build": "tests/system/test_container_build.py",
    "docker run": "tests/system/test_container_build.py",
}

INSTEAD = {
    "--data cifar10": "--data ./cifar10",  # a folder here, not a download
    "--pretrained": "--weights resnet50.pth",
    r"quantize resnet50\b": "quantize resnet50 --weights resnet50.pth",
    r"bench --model resnet50": "bench --model resnet50 --weights resnet50.pth",
    "PORT=9000": "PORT=0",
    "--p99-ms 200": "--p99-ms 60000",  # whatever else this machine does
    " +#.*": "",
    "^curl ": "curl --fail-with-body ",
}

QUICKLY = {
    r"service train\b": "--epochs 1 --size 32",
    r"service bench (?!report)(?!.*--end-to-end)": "--batch-sizes 1,2 --iterations 1",
    r"load_tests (run|capacity)\b": "--seconds 0.5",
    r"load_tests profile\b": "--seconds 3",
    r"load_tests footprint\b": "--requests 50 --idle 0.5",
}

MAY_BE_MISSING = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "bf16": False}
"""Hardware that a command may ask for in vain, and then says so; bf16 is looked for in vain on many CPUs."""


def commands(page: Path) -> list[str]:
    """Return a page's programs in Python, and the lines of its indented blocks.

    What else is fenced is no command, or none for every machine.
    """
    text = page.read_text(encoding="utf-8")
    programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    shown = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [f"python -c {shlex.quote(code)}" for code in programs] + re.findall(
        r"^    (\S.*)", shown, re.MULTILINE
    )


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images, weights and data that the pages take for granted."""
    if not (Path(sys.prefix) / ".installed-dev").exists():
        pytest.skip("needs .venv as make makes it")
    folder = tmp_path_factory.mktemp("things")
    (folder / ".venv").symlink_to(sys.prefix)
    for name in ("Makefile", "service", "load_tests", "monitoring"):
        (folder / name).symlink_to(REPOSITORY / name)
    for name in ("pyproject.toml", "requirements.lock", "requirements-dev.lock"):
        (folder / name).touch()
        os.utime(folder / name, (0, 0))  # so old that make installs nothing anew
    (folder / "more/below").mkdir(parents=True)
    (folder / "more/below/one.png").write_bytes(encode(make_image(), "PNG"))
    real = sorted(REAL_IMAGES.glob("imagenet-sample/*"))[:10]
    (folder / "dog.jpg").write_bytes(_real(REAL_IMAGES / "dog.jpg") or encode(make_image(500, 333)))
    for place, some in (("photos/cat", real[::2]), ("photos/dog", real[1::2])):
        _fill(folder / place, 5)
        for path in some:
            shutil.copy(path, folder / place)
    bundled = load_model("bundled")
    for label in bundled.labels:
        _fill(folder / "cifar10/train" / label, 3)
        _fill(folder / "cifar10/test" / label, 1)
    state = resnet50().state_dict()
    torch.save(state, folder / "resnet50.pth")
    (folder / "W.pth").symlink_to(folder / "resnet50.pth")
    save_file(state, folder / "resnet50.safetensors")
    return folder


@pytest.fixture
def desk(things: Path, tmp_path: Path) -> Path:
    """A page's own folder: the things, and nothing that another page has left."""
    for thing in things.iterdir():
        (tmp_path / thing.name).symlink_to(thing)
    (tmp_path / "runs/mine").mkdir(parents=True)
    shutil.copy(weights_path("bundled"), tmp_path / "runs/mine/model.safetensors")
    return tmp_path


def _real(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _fill(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(encode(make_image(32, 32, seed=number)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_does_what_the_page_says(page: Path, desk: Path, server: Running) -> None:
    """Servers become ready and end on SIGTERM with 0, everything else ends with 0, in the page's order."""
    for shown in commands(page):
        found = [place for start, place in ELSEWHERE.items() if shown.startswith(start)]
        if found:
            assert (REPOSITORY / found[0]).exists()
            continue
        command = _runnable(shown, server)
        if re.search(r"resnet-service ui|serve\b", command) and not _asks_in_vain(command):
            _start_and_end(command, desk)
            continue
        result = subprocess.run(
            ["bash", "-c", command],
            cwd=desk,
            env=_environment(command),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        said = f"{shown}\n{command}\n{result.stdout}\n{result.stderr}"
        assert "Traceback" not in said
        assert result.returncode == 0 or (_asks_in_vain(command) and result.returncode in (1, 3)), said


def _runnable(shown: str, server: Running) -> str:
    command = shown
    for pattern, words in INSTEAD.items():
        command = re.sub(pattern, words, command)
    for pattern, words in QUICKLY.items():
        if re.search(pattern, command):
            command = f"{command} {words}"
    if "resnet-service ui" in command:
        command += f" --port {free_port()}"
    return command.replace("localhost:8000", server.url.removeprefix("http://"))


def _asks_in_vain(command: str) -> bool:
    return any(name in command and not there for name, there in MAY_BE_MISSING.items())


def _environment(command: str) -> dict[str, str]:
    published = re.search(r"MODEL=resnet50\b|serve --model resnet50( |$)", command)
    weights = {"RESNET_SERVICE_WEIGHTS": "resnet50.pth"} if published else {}
    path = f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"
    own = {"PATH": path, "PYTHONUNBUFFERED": "1", "RESNET_SERVICE_PORT": "0", "PORT": "0"}
    return {**os.environ, **own, **weights}


def _start_and_end(command: str, desk: Path) -> None:
    with subprocess.Popen(
        ["bash", "-c", f"exec {command} 2>&1"],
        cwd=desk,
        env=_environment(command),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        patience = threading.Timer(120, process.kill)
        patience.start()
        try:
            assert process.stdout is not None
            said = list(_until_ready(process.stdout))
            assert process.poll() is None, "".join(said)
            started_by_make = psutil.Process(process.pid).children(recursive=True)
            target = started_by_make[-1] if started_by_make else process
            if "resnet-service ui" in command:  # Streamlit ends when its pages are closed
                target.kill()
                return
            target.send_signal(signal.SIGTERM)
            rest = process.stdout.read()
            assert process.wait(60) == 0, f"{command}\n{''.join(said)}{rest}"
        finally:
            patience.cancel()
            process.kill()


def _until_ready(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield line
        if '"event": "ready"' in line or "URL:" in line:
            return
