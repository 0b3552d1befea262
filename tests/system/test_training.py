"""A training process that is killed."""

import os
from pathlib import Path

import pytest

from tests.support.commands import started_command
from tests.support.training import is_equal, read_log, read_state, train, train_arguments, write_images

pytest.importorskip("matplotlib", reason="needs the extra train")


def test_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """Resuming ends with the weights and figures of an uninterrupted run; the lock ends with the process."""
    data, whole, killed = tmp_path / "data", tmp_path / "whole", tmp_path / "killed"
    write_images(data / "train", 32)
    write_images(data / "test", 8)
    flags = ["--epochs", "40", "--progressive", "--max-lr", "0.02", "--muon-lr", "0.01"]
    uninterrupted = train(data, whole, *flags)
    assert uninterrupted.exit_code == 0, uninterrupted.output
    with started_command(train_arguments(data, killed, *flags), tmp_path, os.environ) as command:
        assert any("epoch   2  " in line for line in command.output)
        rejected = train(data, killed, "--resume", *flags)
        command.process.kill()
        command.wait(20)
    assert "is locked by another run" in rejected.output
    assert not (killed / "model.safetensors").exists()
    result = train(data, killed, "--resume", *flags)
    assert result.exit_code == 0, result.output
    assert is_equal(read_state(whole), read_state(killed))
    epochs = [[{**epoch, "seconds": 0} for epoch in read_log(path)["epochs"]] for path in (whole, killed)]
    assert epochs[0] == epochs[1]
    assert 2 <= read_log(killed)["resumed_after"][0] < 40
    assert {path.name for path in whole.iterdir()} <= {path.name for path in killed.iterdir()}
