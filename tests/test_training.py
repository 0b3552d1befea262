"""Training: pictures in folders in, a checkpoint that can be served out."""

import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from service import models
from service.cli import main
from service.models import checkpoint
from service.training.data import augment
from tests.conftest import encode, make_image


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that differ in brightness, 32 training and 8 test pictures each."""
    folder = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 32), ("test", 8)):
        for label, gain in (("dark", 0.3), ("light", 1.0)):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                image = make_image(40, 36, seed=number).point(lambda value, gain=gain: value * gain)
                (folder / split / label / f"{number}.png").write_bytes(encode(image, "PNG"))
    return folder


def train(data: Path, out: Path, *flags: str) -> Result:
    command = ["train", "--data", str(data), "--out", str(out), "--batch-size", "16", "--epochs", "3", *flags]
    return CliRunner().invoke(main, command)


def test_what_was_trained_can_be_loaded_and_has_a_card(pictures: Path, tmp_path: Path) -> None:
    """One command makes a checkpoint that knows its classes, does better than chance, and has a card."""
    out = tmp_path / "mine.safetensors"
    result = train(pictures, out)
    assert result.exit_code == 0, result.output
    model = models.load(str(out))
    assert model.labels == ("dark", "light")
    assert model.preprocessing.crop == 32
    facts = checkpoint.load(out).training
    assert facts["accuracy"] > 0.5
    assert len(facts["epochs"]) == 3
    card = out.with_suffix(".md").read_text(encoding="utf-8")
    assert f"{facts['accuracy']:.2%}" in card
    assert "| dark |" in card


def test_a_seed_decides_the_result(pictures: Path, tmp_path: Path) -> None:
    """Two runs with one seed give the same weights, another seed gives others."""
    states = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        out = tmp_path / f"{name}.safetensors"
        assert train(pictures, out, "--seed", seed, "--epochs", "1").exit_code == 0
        states.append(checkpoint.load(out).state)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_augmentation_keeps_shape_and_varies() -> None:
    """Each picture is shifted, mirrored and cut out on its own, and stays within its range."""
    batch = torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32).repeat(64, 1, 1, 1)
    augmented = augment(batch, torch.Generator().manual_seed(0))
    assert augmented.shape == batch.shape
    assert 0 <= augmented.min() < augmented.max() <= 1
    assert len({tuple(picture.flatten().tolist()) for picture in augmented}) > 60


def test_an_empty_class_is_an_error(tmp_path: Path) -> None:
    """A class folder without pictures stops the run with its name, and nothing is written."""
    for split in ("train", "test"):
        for label in ("empty", "full"):
            (tmp_path / split / label).mkdir(parents=True)
    result = train(tmp_path, tmp_path / "out.safetensors")
    assert result.exit_code == 1
    assert "empty" in result.output
    assert not list(tmp_path.glob("out*"))


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    """A picture that cannot be decoded stops the run with its path."""
    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            (tmp_path / split / label / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    result = train(tmp_path, tmp_path / "out.safetensors")
    assert result.exit_code == 1
    assert "broken.png" in result.output


def test_the_systems_own_files_are_passed_over(pictures: Path, tmp_path: Path) -> None:
    """.DS_Store and its like are neither classes nor pictures."""
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    (data / "train" / ".ipynb_checkpoints").mkdir()
    for name in (".DS_Store", "Thumbs.db"):
        (data / "train" / "dark" / name).write_bytes(b"not a picture")
    assert train(data, tmp_path / "out.safetensors", "--epochs", "1").exit_code == 0


def test_an_output_that_cannot_be_written_is_found_before_training(pictures: Path, tmp_path: Path) -> None:
    """A path that cannot be, or another suffix than .safetensors, ends the run before its first epoch."""
    (tmp_path / "file").touch()
    for out in ("file/out.safetensors", "out.md"):
        result = train(pictures, tmp_path / out)
        assert result.exit_code == 1
        assert "out." in result.output
        assert "epoch" not in result.output


def test_classes_that_differ_between_train_and_test(pictures: Path, tmp_path: Path) -> None:
    """A test class unknown to train is an error, not passed over."""
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    (data / "test" / "third").mkdir()
    result = train(data, tmp_path / "out.safetensors")
    assert result.exit_code == 1
    assert "different classes" in result.output


@pytest.mark.parametrize(
    ("flag", "value"), [("--epochs", "0"), ("--batch-size", "1"), ("--size", "4"), ("--max-lr", "0")]
)
def test_impossible_options(pictures: Path, tmp_path: Path, flag: str, value: str) -> None:
    """Options that cannot be are usage errors."""
    assert train(pictures, tmp_path / "out.safetensors", flag, value).exit_code == 2


@pytest.mark.parametrize("rate", ["nan", "1e30"])
def test_a_loss_that_is_not_a_number_ends_the_run(pictures: Path, tmp_path: Path, rate: str) -> None:
    """A run that diverges says so and writes nothing."""
    result = train(pictures, tmp_path / "out.safetensors", "--max-lr", rate)
    assert result.exit_code == 1
    assert "learning rate" in result.output
    assert not list(tmp_path.iterdir())


def test_an_unknown_network_is_an_error(pictures: Path, tmp_path: Path) -> None:
    """A network that cannot be trained is refused with those that can."""
    result = train(pictures, tmp_path / "out.safetensors", "--network", "resnet9000")
    assert result.exit_code == 1
    assert "cifar-resnet10" in result.output
