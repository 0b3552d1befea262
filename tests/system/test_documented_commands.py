"""Run every command that README.md and docs/ show, page by page, as a reader would type it.

The working directory has the files that the pages mention, with few images. Large networks are replaced by a
small one, and measurements are shortened. Commands that cannot run here are listed in `TESTED_ELSEWHERE`.
"""

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model

from monitoring.local import free_port
from resnet_service.models import load_model, weights_path
from resnet_service.settings import Settings
from tests.support import PHOTOGRAPHS, REPOSITORY
from tests.support.commands import run_command, started_command
from tests.support.images import encode, make_image
from tests.support.pages import blocks
from tests.support.server import Running, serving

TESTED_AS_A_WHOLE: Final = {
    "tutorial.md": "tests/system/test_tutorial.py",
    "http-reference.md": "tests/integration/test_http_reference.py",
}
"""Pages with a test of their own."""

PAGES: Final = [
    REPOSITORY / "README.md",
    *(path for path in sorted((REPOSITORY / "docs").glob("*.md")) if path.name not in TESTED_AS_A_WHOLE),
]

TESTED_ELSEWHERE: Final = {
    "make test": ".ci/run",
    "make load-test": "tests/system/test_load_tests.py",
    "resnet-service baseline": "tests/integration/test_predictions.py",
    "make reliability": "tests/system/test_reliability.py",
    ".venv/bin/python -m load_tests overload": "tests/system/test_reliability.py",
    "make compare-peers": "tests/system/test_load_tests.py",
    "make gpu-check": "tests/system/test_load_tests_hosts.py",
    "docker compose": "tests/unit/test_compose.py",
    "API_KEYS_FILE=./api-keys.txt docker compose": "tests/unit/test_compose.py",
    "docker build": "tests/system/test_container_build.py",
    "docker run": "tests/system/test_container_build.py",
}
"""How commands begin that take minutes or need more than this machine -> the test that covers them."""

SMALL_NETWORK: Final = "squeezenet1_1"

SUBSTITUTIONS: Final = {
    r"\bresnet(50|152)\b(?![.-])": SMALL_NETWORK,
    "--data cifar10": "--data ./cifar10",  # a folder here instead of a download
    rf"--weights {SMALL_NETWORK}\b": f"--network {SMALL_NETWORK} --weights resnet50.pth",
    r"\bW\.pth": "resnet50.pth",
    rf"(quantize|bench|export)( .*)?--model {SMALL_NETWORK}\b": r"\g<0> --weights resnet50.pth",
    r"\bPomeranian\b": "dog",  # the servers here have cifar10
    "PORT=9000": "PORT=0",
    " +#.*": "",
    "^curl ": "curl --fail-with-body ",
}

EXTRA_OPTIONS: Final = {
    r"service train\b": "--epochs 1 --size 32",
    r"service bench (?!report)(?!.*--end-to-end)": "--batch-sizes 1,2 --iterations 1",
    r"load_tests run\b": "--seconds 0.5 --p99-ms 60000",
    r"load_tests capacity\b": "--seconds 0.5",
    r"load_tests profile\b": "--seconds 1",
    r"load_tests resources\b": "--requests 50 --idle 0.5",
}
"""What makes a command quick, by a pattern of the command."""

MISSING_HARDWARE: Final = tuple(
    name
    for name, is_available in (
        ("cuda", torch.cuda.is_available()),
        ("mps", torch.backends.mps.is_available()),
        ("bf16", False),  # missing on many CPUs
    )
    if not is_available
)
"""Devices and precisions for which a command may fail, with a message."""

TIMEOUT_S: Final = 300.0


def commands(page: Path) -> list[str]:
    """Return a page's Python programs and the lines of its indented blocks, but no other fenced blocks."""
    found = list(blocks(page))
    programs = [f"python -c {shlex.quote(block.text)}" for block in found if block.language == "python"]
    return programs + [command for block in found for command in block.commands]


@pytest.fixture(scope="session")
def documented_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the images, weights and data that the pages mention."""
    if not (Path(sys.prefix) / ".installed-dev").exists():
        pytest.skip("needs the environment that `make` creates")
    folder = tmp_path_factory.mktemp("documented")
    (folder / ".venv").symlink_to(sys.prefix)
    for name in ("Makefile", "service", "load_tests", "monitoring", "tests"):
        (folder / name).symlink_to(REPOSITORY / name)
    for name in ("pyproject.toml", "requirements.lock", "requirements-dev.lock"):
        (folder / name).touch()
        os.utime(folder / name, (0, 0))  # older than the environment, so that `make` installs nothing
    (folder / "more/below").mkdir(parents=True)
    (folder / "more/below/one.png").write_bytes(encode(make_image(), "PNG"))
    for name in ("cat.jpg", "dog.jpg"):
        shutil.copy(PHOTOGRAPHS / "cat.jpg", folder / name)
    for label in ("cat", "dog"):
        _write_images(folder / "photos" / label, 5)
    _write_images(folder / "imagenette" / "val" / "n02102040", 2)
    for label in load_model("cifar10").labels:
        _write_images(folder / "cifar10/train" / label, 3)
        _write_images(folder / "cifar10/test" / label, 1)
    state = get_model(SMALL_NETWORK).state_dict()
    torch.save(state, folder / "resnet50.pth")
    save_file(state, folder / "resnet50.safetensors")
    torch.save(get_model("resnet18", num_classes=2).state_dict(), folder / "fine-tuned.pth")
    (folder / "labels.txt").write_text("cat\ndog\n")
    _write_prediction_log(folder)
    (folder / "models/cifar10/1").mkdir(parents=True)
    (folder / "models/cifar10/1/model.yaml").write_text("model: cifar10\n")
    return folder


@pytest.fixture(scope="session")
def documented_server(settings: Settings) -> Iterator[Running]:
    """Yield the server that clients on the pages call, with a port for gRPC."""
    with serving(settings, grpc=True) as running:
        yield running


@pytest.fixture
def working_directory(documented_files: Path, tmp_path: Path) -> Path:
    """Return a folder for one page, with the documented files and a trained model."""
    for path in documented_files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "runs/mine").mkdir(parents=True)
    shutil.copy(weights_path("cifar10"), tmp_path / "runs/mine/model.safetensors")
    return tmp_path


def _write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(encode(make_image(32, 32, seed=number)))


def _write_prediction_log(folder: Path) -> None:
    """Write a log with five images of each of two classes, and a file with their classes."""
    images = [encode(make_image(32, 32, seed=seed)) for seed in range(10)]
    digests = [hashlib.sha256(image).hexdigest() for image in images]
    (folder / "predictions").mkdir()
    table = pa.table({"sha256": digests, "image": pa.array(images, pa.binary())})
    pq.write_table(table, folder / "predictions/log.parquet")
    lines = [f"{digest},{'cat' if number % 2 else 'dog'}" for number, digest in enumerate(digests)]
    (folder / "true-classes.csv").write_text("\n".join(("sha256,true_class", *lines)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_documented_commands_succeed(page: Path, working_directory: Path, documented_server: Running) -> None:
    """Servers become ready and end with status 0 on SIGTERM; all other commands end with status 0."""
    for documented in commands(page):
        covering = [test for start, test in TESTED_ELSEWHERE.items() if documented.startswith(start)]
        if covering:
            assert (REPOSITORY / covering[0]).exists()
            continue
        command = _adapted(documented, documented_server)
        may_fail = any(name in command for name in MISSING_HARDWARE)
        if re.search(r"resnet-service ui|serve\b", command) and not may_fail:
            _start_and_stop(command, working_directory)
            continue
        status, output = _run(command, working_directory)
        context = f"{documented}\n{command}\n{output}"
        assert "Traceback" not in output, context
        assert status == 0 or (may_fail and status in (1, 3)), context


def _adapted(documented: str, server: Running) -> str:
    """Return the command with its substitutions and extra options, directed at the running server."""
    command = documented
    for pattern, replacement in SUBSTITUTIONS.items():
        command = re.sub(pattern, replacement, command)
    for pattern, options in EXTRA_OPTIONS.items():
        if re.search(pattern, command):
            command = f"{command} {options}"
    if "resnet-service ui" in command:
        command += f" --port {free_port()}"
    command = command.replace("localhost:8002", server.grpc_url)
    return command.replace("localhost:8000", server.url.removeprefix("http://"))


def _environment(command: str) -> dict[str, str]:
    published = re.search(rf"MODEL={SMALL_NETWORK}\b|serve --model {SMALL_NETWORK}( |$)", command)
    weights = {"RESNET_SERVICE_WEIGHTS": "resnet50.pth"} if published else {}
    path = f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"
    fixed = {"PATH": path, "PYTHONUNBUFFERED": "1", "RESNET_SERVICE_PORT": "0", "PORT": "0"}
    return {**os.environ, **fixed, **weights}


def _service_arguments(command: str) -> list[str] | None:
    """Return the arguments of a plain `resnet-service` command; None for one that needs a shell."""
    if re.search(r"[|<>*$&;]", command):
        return None
    program, *arguments = shlex.split(command)
    return arguments if Path(program).name == "resnet-service" and arguments[0] != "ui" else None


def _run(command: str, folder: Path) -> tuple[int, str]:
    """Run a command and return its exit status and output."""
    arguments = _service_arguments(command)
    if arguments is not None:
        return run_command(arguments, folder, _environment(command), TIMEOUT_S)
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=_environment(command),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return result.returncode, result.stdout


def _start_and_stop(command: str, folder: Path) -> None:
    """Start a server, wait until it is ready, and end it."""
    arguments = _service_arguments(command)
    if arguments is not None:
        with started_command(arguments, folder, _environment(command)) as started:
            output = list(_until_ready(started.output))
            assert started.process.pid is not None
            assert started.process.is_alive(), "".join(output)
            os.kill(started.process.pid, signal.SIGTERM)
            output += started.output
            assert started.wait(60) == 0, f"{command}\n{''.join(output)}"
        return
    with subprocess.Popen(
        ["bash", "-c", f"exec {command} 2>&1"],
        cwd=folder,
        env=_environment(command),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        killer = threading.Timer(TIMEOUT_S, process.kill)
        killer.start()
        try:
            assert process.stdout is not None
            output = list(_until_ready(process.stdout))
            assert process.poll() is None, "".join(output)
            children = psutil.Process(process.pid).children(recursive=True)
            target = children[-1] if children else process
            if "resnet-service ui" in command:  # Streamlit waits for its pages to close
                target.kill()
                return
            target.send_signal(signal.SIGTERM)
            output += process.stdout
            assert process.wait(60) == 0, f"{command}\n{''.join(output)}"
        finally:
            killer.cancel()
            process.kill()


def _until_ready(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield line
        if '"event": "ready"' in line or "URL:" in line:
            return
