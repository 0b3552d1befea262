"""Run `resnet-service` commands in processes that are forked from one with PyTorch already imported.

Each new Python process spends 3 s of CPU time on importing PyTorch and OpenVINO; a fork spends milliseconds.
The command has its own process, arguments, working directory, environment, output and exit status.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

_PRELOADED: Final = (
    "tests.support.commands",
    "resnet_service.cli",
    "resnet_service.server.run",
    "resnet_service.runtimes.openvino",
    "resnet_service.runtimes.quantization",
    "resnet_service.training.run",
    "resnet_service.benchmark.plots",
    "resnet_service.diagnostics.checks",
)


@dataclass
class Command:
    """A running command; `output` has the lines of both its output streams."""

    process: BaseProcess
    output: TextIOWrapper

    def wait(self, timeout_s: float) -> int:
        """Return the exit status; raises TimeoutError after `timeout_s` seconds."""
        self.process.join(timeout_s)
        if self.process.exitcode is None:
            raise TimeoutError(f"the command did not end within {timeout_s:g} s")
        return self.process.exitcode


@contextmanager
def started_command(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> Iterator[Command]:
    """Start `resnet-service ARGUMENTS` in `folder`, and kill it at the end of the block."""
    with TemporaryDirectory() as temporary:
        pipe = Path(temporary) / "output"
        os.mkfifo(pipe)
        process = _context().Process(target=_run, args=(list(arguments), folder, dict(environment), pipe))
        process.start()
        try:
            with pipe.open(encoding="utf-8", errors="replace") as output:
                yield Command(process, output)
        finally:
            process.kill()
            process.join()


def run_command(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], timeout_s: float
) -> tuple[int, str]:
    """Run `resnet-service ARGUMENTS` in `folder`; return its exit status and its output."""
    with started_command(arguments, folder, environment) as command:
        killer = threading.Timer(timeout_s, command.process.kill)  # ends `read`, which has no time limit
        killer.start()
        try:
            output = command.output.read()
        finally:
            killer.cancel()
        return command.wait(timeout_s), output


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    return context


def _run(arguments: list[str], folder: Path, environment: dict[str, str], pipe: Path) -> None:
    """Become the command: the target of the forked process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell leaves it ignored
    output = os.open(pipe, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.close(output)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    from resnet_service.cli import main

    sys.argv = ["resnet-service", *arguments]
    main(arguments, prog_name="resnet-service")
