"""A training process that is killed or interrupted."""

import os
import signal
from pathlib import Path

import pytest

from tests.support.commands import started_command
from tests.support.training import is_equal, read_log, read_state, train, train_arguments, write_data

pytest.importorskip("matplotlib", reason="needs the extra train")

FLAGS = ("--epochs", "40", "--progressive", "--max-lr", "0.02", "--muon-lr", "0.01")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 32 training and 8 test images of each class."""
    return write_data(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def uninterrupted(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "uninterrupted"
    result = train(images, output, *FLAGS)
    assert result.exit_code == 0, result.output
    return output


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_run_resumes_to_the_same_weights(
    images: Path, uninterrupted: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Resuming ends with the weights and figures of an uninterrupted run; the lock ends with the process."""
    output = tmp_path / "out"
    with started_command(train_arguments(images, output, *FLAGS), tmp_path, os.environ) as command:
        assert any("epoch   2  " in line for line in command.output)
        second = train(images, output, "--resume", *FLAGS)
        assert command.process.pid is not None
        os.kill(command.process.pid, number)
        messages = command.output.read()
        assert command.wait(20) == (130 if number == signal.SIGINT else -number)
    assert "is locked by another run" in second.output
    assert ("--resume continues the run" in messages) == (number == signal.SIGINT)
    assert "Traceback" not in messages
    assert not (output / "model.safetensors").exists()
    result = train(images, output, "--resume", *FLAGS)
    assert result.exit_code == 0, result.output
    assert is_equal(read_state(uninterrupted), read_state(output))
    epochs = [
        [{**epoch, "seconds": 0} for epoch in read_log(path)["epochs"]] for path in (uninterrupted, output)
    ]
    assert epochs[0] == epochs[1]
    assert 2 <= read_log(output)["resumed_after"][0] < 40
    assert {path.name for path in uninterrupted.iterdir()} <= {path.name for path in output.iterdir()}
