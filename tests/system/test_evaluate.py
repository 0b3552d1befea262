"""The accuracy of the model cifar10 on test images of CIFAR-10."""

import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from resnet_service.cli import main
from resnet_service.models import checkpoint
from tests.support import REPOSITORY

CHECKPOINT = REPOSITORY / "service/resnet_service/models/bundled/cifar10.safetensors"
IMAGES_PER_CLASS = 30


@pytest.fixture(scope="module")
def cifar10(real_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the first 30 test images of each class of CIFAR-10."""
    archive = real_images / "cifar10-test.tar.xz"
    if not archive.is_file():
        pytest.skip(f"needs {archive}")
    folder = tmp_path_factory.mktemp("cifar10")
    extracted: Counter[str] = Counter()
    with tarfile.open(archive) as file:
        for member in file:
            label = Path(member.name).parent.name
            if member.isfile() and extracted[label] < IMAGES_PER_CLASS:
                extracted[label] += 1
                file.extract(member, folder, filter="data")
    return folder


@pytest.mark.parametrize("flags", [[], ["--mirrored"]])
def test_cifar10_has_the_accuracy_of_its_model_card(cifar10: Path, flags: list[str]) -> None:
    """With and without mirror images, the accuracy on 300 test images is within 0.05 of the card's."""
    expected = checkpoint.load_checkpoint(CHECKPOINT).training["accuracy"]
    command = ["evaluate", "--model", "cifar10", "--data", str(cifar10), "--json", *flags]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    evaluation = json.loads(result.stdout)
    assert evaluation["images"] == 10 * IMAGES_PER_CLASS
    assert evaluation["accuracy"] == pytest.approx(expected, abs=0.05)
    assert len(evaluation["accuracy_by_class"]) == 10
