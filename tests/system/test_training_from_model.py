"""Training with few images: from a model and from random weights."""

import tarfile
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from resnet_service.cli import main
from resnet_service.models import load_model
from tests.support.training import read_log

pytest.importorskip("matplotlib", reason="needs the extra train")

TRAIN_PER_CLASS = 6
TEST_PER_CLASS = 10
CHANCE = 0.1


@pytest.fixture(scope="module")
def images(real_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 60 training and 100 test images of CIFAR-10's ten classes.

    All are test images of CIFAR-10, on which the model cifar10 was not trained.
    """
    archive = real_images / "cifar10-test.tar.xz"
    if not archive.is_file():
        pytest.skip(f"needs {archive}")
    folder = tmp_path_factory.mktemp("images")
    count: Counter[str] = Counter()
    with tarfile.open(archive) as file:
        for member in file:
            path = Path(member.name)
            label = path.parent.name
            content = file.extractfile(member)
            if content is None or count[label] == TRAIN_PER_CLASS + TEST_PER_CLASS:
                continue
            target = folder / ("train" if count[label] < TRAIN_PER_CLASS else "test") / label / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.read())
            count[label] += 1
    return folder


def train(images: Path, output: Path, *flags: str) -> Result:
    result = CliRunner().invoke(main, ["train", "--data", str(images), "--output", str(output), *flags])
    assert result.exit_code == 0, result.output
    return result


def test_frozen_model_learns_from_few_images(images: Path, tmp_path: Path) -> None:
    """With 60 images and three epochs the frozen cifar10 is far above chance, without a warning."""
    result = train(images, tmp_path / "frozen", "--weights", "cifar10", "--freeze", "--epochs", "3")
    log = read_log(tmp_path / "frozen")
    assert log["accuracy"] > 6 * CHANCE
    assert log["network"] == "cifar-resnet18"
    assert log["pretrained"] == "cifar10"
    assert log["warnings"] == []
    assert "warning" not in result.stderr
    assert load_model(str(tmp_path / "frozen" / "model.safetensors")).labels[3] == "cat"


def test_network_with_random_weights_needs_more_images(images: Path, tmp_path: Path) -> None:
    """With the same images it stays near chance, and the run says what to change."""
    result = train(images, tmp_path / "scratch", "--network", "cifar-resnet10", "--epochs", "3")
    log = read_log(tmp_path / "scratch")
    assert log["accuracy"] < 3 * CHANCE
    assert "3 steps on 60 images are too few" in log["warnings"][0]
    assert f"warning: {log['warnings'][0]}" in result.stderr
    assert "--weights cifar10" in result.stderr
