"""Run docs/tutorial.md from an empty folder: every command, script and file, in the order of the page.

The environment that the tutorial creates has the packages of this one: pip installs the package of the clone,
and downloads nothing. Ports are free ones instead of those of the page. Outputs are compared to those shown:
JSON by its keys and types, text without its numbers.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from monitoring.local import free_port
from tests.support import REPOSITORY
from tests.support.pages import Block, assert_same_form, blocks

PAGE: Final = REPOSITORY / "docs/tutorial.md"

LONG_RUNNING: Final = {
    "resnet-service serve": '"event": "ready"',
    "prometheus ": "Server is ready to receive web requests",
}
"""How commands begin that run until Ctrl-C -> what they print once they are ready."""

TESTED_ELSEWHERE: Final = {
    "MODEL=/models/own-int8.safetensors docker compose": "tests/unit/test_compose.py",
    "docker": "tests/system/test_container_build.py",
    "kubectl apply": "tests/system/test_kustomize.py",
}
"""How commands begin that need a container engine, a registry or a cluster -> a test of what they use."""

PROGRAMS: Final = ("prometheus", "kubectl")
"""Programs that the tutorial says to install; without one, its commands are left out."""

TIMEOUT_S: Final = 300.0


class Reader:
    """Someone who follows the tutorial in a folder."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self._running: dict[str, ExitStack] = {}
        self._ports = {f"localhost:{number}": f"127.0.0.1:{free_port()}" for number in (8000, 8001, 9090)}
        port, management_port, _ = (address.rpartition(":")[2] for address in self._ports.values())
        others = {name: value for name, value in os.environ.items() if not name.startswith("RESNET_SERVICE_")}
        self._environment = {
            **others,
            "PATH": f"{folder / '.venv/bin'}:{os.environ['PATH']}",
            "PYTHONPATH": "",
            "RESNET_SERVICE_PORT": port,
            "RESNET_SERVICE_MANAGEMENT_PORT": management_port,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",  # everything but the package is there
            "PIP_NO_BUILD_ISOLATION": "0",
            "OMP_NUM_THREADS": "1",  # other tests use the other cores
        }

    def adapt(self, text: str) -> str:
        """Replace the ports of the page, and the interval between two scrapes."""
        for address, replacement in self._ports.items():
            text = text.replace(address, replacement)
        return text.replace("scrape_interval: 5s", "scrape_interval: 1s")

    def run(self, command: str) -> str:
        """Run a command and return its output; start one that runs until Ctrl-C, and return nothing."""
        for start, marker in LONG_RUNNING.items():
            if command.startswith(start):
                self._start(start, command, marker)
                return ""
        result = subprocess.run(
            [
                "bash",
                "-c",
                self.adapt(re.sub(r"\bcurl ", "curl --fail-with-body --no-progress-meter ", command)),
            ],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}"
        if command.startswith("python3 -m venv"):
            self._share_packages()
        return result.stdout

    def _start(self, kind: str, command: str, marker: str) -> None:
        if kind in self._running:
            self._running.pop(kind).close()  # the reader presses Ctrl-C before
        if kind.startswith("prometheus"):
            command += f" --web.listen-address={self._ports['localhost:9090']}"
        stack = self._stack.enter_context(ExitStack())
        stack.enter_context(running(command, marker, self.folder, self._environment))
        self._running[kind] = stack

    def _share_packages(self) -> None:
        """Let the new environment use the packages of this one, as if pip had downloaded them."""
        python = self.folder / ".venv/bin/python"
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "setuptools"], check=False)
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        packages = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
        (Path(packages.strip()) / "shared.pth").write_text(sysconfig.get_path("purelib"))


@contextmanager
def running(command: str, marker: str, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Start a command, wait until it has printed `marker`, and end it with Ctrl-C, which must succeed."""
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        killer = threading.Timer(TIMEOUT_S, process.kill)
        killer.start()
        assert process.stdout is not None
        output = []
        try:
            for line in process.stdout:
                output.append(line)
                if marker in line:
                    break
            assert process.poll() is None, "".join(output)
            reader = threading.Thread(target=output.extend, args=(process.stdout,))
            reader.start()
            yield
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0, f"{command}\n{''.join(output)}"
            reader.join()
        finally:
            killer.cancel()
            process.kill()


def without_numbers(text: str) -> str:
    """Return text with N for each number, and P for the precision, which depends on the machine."""
    text = re.sub(r"\b(bf16|fp32)\b", "P", text)
    return re.sub(r"\s+", " ", re.sub(r"\d[\d.,]*", "N", text)).strip()


def check_output(shown: Block, output: str) -> None:
    """Check that an output has the lines, or the JSON, that the page shows; raises AssertionError."""
    if shown.language == "json":
        expected, actual = json.loads(shown.text), json.loads(output)
        assert_same_form(expected, actual)
        if "predictions" in expected:
            assert actual["predictions"][0]["label"] == expected["predictions"][0]["label"]
    else:
        lines = {without_numbers(line) for line in output.splitlines()}
        assert {without_numbers(line) for line in shown.text.splitlines()} <= lines, output


@pytest.fixture
def empty_folder(tmp_path: Path) -> Path:
    """Return a folder with nothing but a clone of the repository, without its history."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, names.split("\0")):
        target = tmp_path / "resnet-service" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, target)
    return tmp_path


def test_the_tutorial_works_from_an_empty_folder(empty_folder: Path) -> None:
    """Every command succeeds, servers end with status 0 on Ctrl-C, and outputs are as shown."""
    if not (Path(sys.prefix) / ".installed-dev").exists():
        pytest.skip("needs the environment that `make` creates")
    with ExitStack() as stack:
        reader = Reader(empty_folder, stack)
        commands: list[str] = []
        output = ""
        for block in blocks(PAGE):
            if block.file is not None:
                (empty_folder / block.file).write_text(reader.adapt(block.text))
            elif block.language == "python":
                program = reader.adapt(block.text)
                subprocess.run(
                    [empty_folder / ".venv/bin/python", "-c", program], cwd=empty_folder, check=True
                )
            elif block.commands:
                commands = [command for command in block.commands if can_run(command)]
                output = "".join([reader.run(command) for command in commands])
            elif commands:
                check_when_ready(reader, commands, block, output)


def can_run(command: str) -> bool:
    """Whether a command can run here; if not, another test covers what it does."""
    if command.startswith(PROGRAMS) and shutil.which(command.split()[0]) is None:
        return False
    if "localhost:9090" in command and shutil.which("prometheus") is None:
        return False
    covering = [test for start, test in TESTED_ELSEWHERE.items() if command.startswith(start)]
    assert all((REPOSITORY / test).exists() for test in covering)
    return not covering


def check_when_ready(reader: Reader, commands: list[str], shown: Block, output: str) -> None:
    """Check the output; ask Prometheus again until it has scraped the service."""
    deadline = time.monotonic() + 30
    while True:
        try:
            check_output(shown, output)
        except AssertionError:
            if "localhost:9090" not in commands[-1] or time.monotonic() > deadline:
                raise
            output = reader.run(commands[-1])
        else:
            return
