"""`resnet-service train` in the test process: its files, resuming, and errors."""

import math
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from resnet_service.errors import TrainingError
from resnet_service.images import Preprocessing
from resnet_service.models import checkpoint, load_model
from resnet_service.training.data import TrainTestData, load_dataset
from resnet_service.training.recipes import TrainingSetup
from resnet_service.training.run import RunConfig, run
from resnet_service.training.run_dir import RunDirectory
from resnet_service.training.trainer import TrainingConfig
from tests.support.server import only_once
from tests.support.training import failed_train, is_equal, read_log, read_state, train, write_data

pytestmark = only_once


pytest.importorskip("matplotlib", reason="needs the extra train")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 32 training and 8 test images of each class."""
    return write_data(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a finished run."""
    output = tmp_path_factory.mktemp("runs") / "mine"
    result = train(images, output)
    assert result.exit_code == 0, result.output
    return output


@pytest.fixture(scope="module")
def interrupted(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run that was interrupted after its second epoch."""
    output = tmp_path_factory.mktemp("runs") / "interrupted"
    save_epoch = RunDirectory.save_epoch

    def save_and_interrupt(self: RunDirectory, state: Any, log: Any) -> None:
        save_epoch(self, state, log)
        if state["trainer"]["completed_epochs"] == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "save_epoch", save_and_interrupt)
        result = train(images, output)
    assert result.exit_code == 130, result.output
    assert "--resume continues" in result.output
    return output


def test_checkpoint_of_a_run_can_be_loaded(images: Path, finished: Path) -> None:
    """It contains labels and preprocessing, and the model is better than chance."""
    model = load_model(str(finished / "model.safetensors"))
    assert model.name == "mine"
    assert model.labels == ("dark", "light")
    assert model.preprocessing.crop == 32
    train_set = load_dataset(str(images), Preprocessing(32, 32, (0, 0, 0), (1, 1, 1))).train
    assert (model.preprocessing.mean, model.preprocessing.std) == train_set.channel_statistics()
    assert read_log(finished)["accuracy"] > 0.5


def test_run_writes_log_model_card_and_plots(finished: Path) -> None:
    """The log has hardware, configuration, epochs and accuracy by class."""
    log = read_log(finished)
    assert [epoch["number"] for epoch in log["epochs"]] == [1, 2, 3]
    assert {"os", "architecture", "processor", "torch"} <= log["hardware"].keys()
    assert log["config"]["training"]["batch_size"] == 16
    assert log["images"] == {"train": 64, "test": 16}
    assert log["accuracy_by_class"].keys() == {"dark", "light"}
    assert np.sum(log["confusion"]) == 16
    assert np.trace(log["confusion"]) / 16 == pytest.approx(log["accuracy"])
    assert log["seconds"] > 0
    card = (finished / "model.md").read_text(encoding="utf-8")
    assert f"{log['accuracy']:.2%}" in card
    assert "| dark |" in card
    for name in ("learning_curve.png", "confusion_matrix.png"):
        with Image.open(finished / name) as image:
            assert min(image.size) > 300
    assert not (finished / "resume.pt").exists()


def test_run_with_few_steps_warns(finished: Path) -> None:
    [warning] = read_log(finished)["warnings"]
    assert warning.startswith("12 steps on 64 images are too few for random weights")


def test_run_that_learns_nothing_warns(images: Path, tmp_path: Path) -> None:
    """Classes with the same images: the loss rises above that of chance, and the accuracy is that of chance.

    Each warning is once on standard error and once in the log, and names the option to change.
    """
    image = (images / "train" / "dark" / "0.png").read_bytes()
    for label in ("left", "right"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(40):
            (tmp_path / "data" / label / f"{number}.png").write_bytes(image)
    flags = ("--epochs", "4", "--max-lr", "1", "--no-flip", "--shift", "0")
    result = train(tmp_path / "data", tmp_path / "out", *flags)
    assert result.exit_code == 0, result.output
    _, loss, accuracy = read_log(tmp_path / "out")["warnings"]
    assert loss == "the loss rises and is above that of chance, 0.693; lower --max-lr"
    assert accuracy.startswith("the accuracy on the test images, 50.00%, is not above")
    for warning in (loss, accuracy):
        assert result.stderr.count(f"warning: {warning}") == 1
        assert warning not in result.stdout


def test_each_seed_has_its_own_run(images: Path, finished: Path, tmp_path: Path) -> None:
    """--seeds 1,2 prints mean and spread; the same seed leads to the same weights, another to others."""
    try:
        result = train(images, tmp_path, "--seeds", "1,2", "--deterministic")
    finally:
        torch.use_deterministic_algorithms(False)
    assert result.exit_code == 0, result.output
    accuracies = [read_log(tmp_path / f"seed-{seed}")["accuracy"] for seed in (1, 2)]
    assert f"2 seeds: mean {np.mean(accuracies):.2%}" in result.output
    assert f"{np.std(accuracies, ddof=1) * 100:.2f} points" in result.output
    assert is_equal(read_state(tmp_path / "seed-1"), read_state(finished))
    assert not is_equal(read_state(tmp_path / "seed-2"), read_state(finished))


def test_all_options_are_used(images: Path, finished: Path, tmp_path: Path) -> None:
    """Each hyperparameter reaches the configuration; a frozen run stores fp16; broken images are reported."""
    options = {
        "epochs": 2,
        "batch_size": 8,
        "max_lr": 0.02,
        "muon_lr": 0.01,
        "momentum": 0.5,
        "weight_decay": 0.1,
        "label_smoothing": 0.2,
        "ema": 0.5,
        "shift": 0.25,
        "cutout": 0.125,
    }
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    flags += ["--no-flip", "--progressive", "--seeds", "7", "--store", "fp16", "--test-share", "0.25"]
    flags += ["--weights", str(finished / "model.safetensors"), "--freeze", "--precision", "fp32"]
    data = tmp_path / "data"
    shutil.copytree(images / "train", data)
    for name in ("0.png", "1.png"):
        (data / "dark" / name).write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    result = train(data, tmp_path / "out", *flags)
    assert result.exit_code == 0, result.output
    assert "skipped 2 files in total" in result.output
    assert "0.png" in result.output
    log = read_log(tmp_path / "out")
    expected = {**options, "flip": False, "progressive": True, "seed": 7}
    assert log["config"]["training"] == expected
    assert sorted(Path(path).name for path in log["unreadable"]) == ["0.png", "1.png"]
    assert [epoch["size"] for epoch in log["epochs"]] == [24, 32]
    before, after = read_state(finished), read_state(tmp_path / "out")
    assert after["conv1.weight"].dtype == torch.float16
    assert torch.equal(before["conv1.weight"].half(), after["conv1.weight"])
    assert not torch.equal(before["fc.weight"].half(), after["fc.weight"])
    preprocessing = [
        checkpoint.load_checkpoint(output / "model.safetensors").preprocessing
        for output in (finished, tmp_path / "out")
    ]
    assert preprocessing[0] == preprocessing[1]


def test_interrupted_run_resumes_to_the_same_weights(
    images: Path, finished: Path, interrupted: Path, tmp_path: Path
) -> None:
    """After an interrupt, --resume ends with the weights, figures and files of an uninterrupted run."""
    output = tmp_path / "out"
    shutil.copytree(interrupted, output)
    result = train(images, output, "--resume")
    assert result.exit_code == 0, result.output
    assert is_equal(read_state(output), read_state(finished))
    epochs = [[{**epoch, "seconds": 0} for epoch in read_log(path)["epochs"]] for path in (output, finished)]
    assert epochs[0] == epochs[1]
    assert read_log(output)["resumed_after"] == [2]
    assert read_log(output)["warnings"] == read_log(finished)["warnings"]
    assert {path.name for path in output.iterdir()} == {path.name for path in finished.iterdir()}


def test_run_with_other_options_is_not_resumed(images: Path, finished: Path, interrupted: Path) -> None:
    """The message lists the options that differ."""
    for output in (finished, interrupted):
        result = train(images, output, "--resume", "--max-lr", "0.5")
        assert result.exit_code == 1
        assert "max_lr was 0.1 and is now 0.5" in result.output


def test_run_with_other_images_is_not_resumed(images: Path, interrupted: Path, tmp_path: Path) -> None:
    """Removed images and renamed classes are detected."""

    def resume(data: Path) -> str:
        result = train(data, interrupted, "--resume")
        assert result.exit_code == 1, result.output
        return result.output

    renamed, reduced = tmp_path / "renamed", tmp_path / "reduced"
    for data in (renamed, reduced):
        shutil.copytree(images, data)
    for split in ("train", "test"):
        (renamed / split / "dark").rename(renamed / split / "murky")
    assert "images or classes differ" in resume(renamed)
    (reduced / "test" / "dark" / "0.png").unlink()
    assert "images or classes differ" in resume(reduced)


def test_finished_run_is_not_repeated(images: Path, finished: Path) -> None:
    """--resume prints its result; without --resume it is an error. Neither changes the checkpoint."""
    before = (finished / "model.safetensors").stat().st_mtime_ns
    assert f"{read_log(finished)['accuracy']:.2%}" in train(images, finished, "--resume").output
    result = train(images, finished)
    assert result.exit_code == 1
    assert "holds a finished run" in result.output
    assert (finished / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("content", [b"half a file", None])
def test_broken_resume_file_is_an_error(images: Path, tmp_path: Path, content: bytes | None) -> None:
    if content is None:
        torch.save({}, tmp_path / "resume.pt")
    else:
        (tmp_path / "resume.pt").write_bytes(content)
    result = train(images, tmp_path, "--resume")
    assert result.exit_code == 1
    assert "resume.pt cannot be read" in result.output


def test_directory_of_an_active_run_is_locked(images: Path, tmp_path: Path) -> None:
    with RunDirectory(tmp_path).locked():
        assert "is locked by another run" in failed_train(images, tmp_path)


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Limit the size of the files that this process can write, in bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_ends_the_run_without_partial_files(images: Path, tmp_path: Path) -> None:
    """A limit on the size of files has the effect of a full disk."""
    with file_size_limit(100_000):
        message = failed_train(images, tmp_path)
    assert "could not be written" in message


def test_unwritable_output_is_detected_before_training(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = train(images, tmp_path / "file" / "out")
    assert result.exit_code == 1
    assert "cannot be written" in result.output
    assert "epoch" not in result.output


def test_all_seeds_are_checked_before_the_first_one_is_trained(images: Path, tmp_path: Path) -> None:
    """The directory of the second seed holds a run, so that none starts."""
    assert train(images, tmp_path / "seed-2", "--epochs", "1").exit_code == 0
    result = train(images, tmp_path, "--epochs", "1", "--seeds", "1,2")
    assert result.exit_code == 1
    assert "seed-2 holds a finished run" in result.stderr
    assert "epoch" not in result.output


def test_network_that_fails_only_in_training_is_detected_before_the_images_are_read(tmp_path: Path) -> None:
    """Inception_v3, for one, has an auxiliary layer that needs larger images than the rest."""

    class Network(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.training and images.shape[-1] < 48:
                raise ValueError("the kernel is larger than the input")
            return images.mean((2, 3))

    def load_data() -> TrainTestData:
        pytest.fail("the images were read")

    preprocessing = Preprocessing(64, 64, (0, 0, 0), (1, 1, 1))
    training = TrainingConfig(epochs=3, progressive=True)
    setup = TrainingSetup("fake", preprocessing, training, None, True, lambda _: Network())
    config = RunConfig("fake", "nowhere", training, size=64)
    with pytest.raises(TrainingError, match=r"does not support images of 32 pixels .* try --no-progressive"):
        run(config, setup, RunDirectory(tmp_path), load_data)


def test_unusable_input_leaves_no_files(images: Path, tmp_path: Path) -> None:
    """Each error is one message and status 1: too small images, missing data, an unknown network."""
    output = tmp_path / "out"
    assert "does not support images of 8 pixels" in failed_train(images, output, "--size", "8")
    assert "does not exist" in failed_train(tmp_path / "nowhere", output)
    assert "unknown network" in failed_train(images, output, "--network", "resnet9000")
    assert "lower --max-lr" in failed_train(images, output, "--max-lr", "1e30")


@pytest.mark.parametrize(
    "flags",
    [
        ["--epochs", "0"],
        ["--batch-size", "1"],
        ["--size", "4"],
        ["--max-lr", "0"],
        ["--max-lr", str(math.nan)],
        ["--shift", str(math.nan)],
        ["--seeds", "99999999999999999999"],
        ["--seeds", "one"],
        ["--test-share", "1"],
        ["--freeze"],
    ],
    ids=str,
)
def test_invalid_options_are_usage_errors(images: Path, tmp_path: Path, flags: list[str]) -> None:
    assert train(images, tmp_path / "out", *flags).exit_code == 2
    assert not (tmp_path / "out").exists()
