"""Starts beside busy processes: the same streams and the same largest batch each time."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.processes import COMMAND, environment, events, until

pytestmark = pytest.mark.exclusive

STARTS = 10
BUSY_PROCESSES = 2


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """Keep all cores busy with other processes."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY_PROCESSES)]
    yield
    for process in processes:
        process.kill()
        process.wait()


def start(*flags: str) -> tuple[int, int, str]:
    """Start the service once and return its streams, its largest batch and the reason for it."""
    command = [*COMMAND, "--model", "cifar10", "--port", "0", "--log-format", "json", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        try:
            log = events(process)
            streams = until(log, "serving")["streams_per_device"]
            ready = until(log, "ready")
            return streams, ready["largest_batch"], ready["reason"]
        finally:
            process.kill()


@pytest.mark.usefixtures("busy_machine")
def test_ten_starts_beside_busy_processes_choose_the_same() -> None:
    """Ten starts have the same streams and form batches of the same size, and the log says why."""
    choices = {start() for _ in range(STARTS)}
    assert len(choices) == 1
    assert "GFLOP per image" in choices.pop()[2]


def test_settings_decide_streams_and_batch_size() -> None:
    """With both settings nothing is chosen, and the log says so."""
    assert start("--streams-per-device", "2", "--max-batch", "6") == (2, 6, "max_batch is set")
