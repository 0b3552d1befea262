"""Small labeled images, and training runs in the test process."""

import json
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner, Result

from resnet_service.cli import main
from resnet_service.models import checkpoint
from tests.support.images import encode, make_image


def write_images(folder: Path, count: int) -> None:
    """Write `count` images for each of two classes, which differ in brightness."""
    for label, gain in (("dark", 0.3), ("light", 1.0)):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            image = make_image(40, 36, seed=number).point(lambda value, gain=gain: value * gain)
            (folder / label / f"{number}.png").write_bytes(encode(image, "PNG"))


def write_data(folder: Path) -> Path:
    """Write 32 training and 8 test images of each class into a folder, and return the folder."""
    write_images(folder / "train", 32)
    write_images(folder / "test", 8)
    return folder


def train_arguments(data: Path | str, output: Path, *flags: str) -> list[str]:
    """Return the arguments of a `train` command that takes about a second."""
    defaults = ("--network", "lenet", "--batch-size", "16", "--epochs", "3")
    return ["train", "--data", str(data), "--output", str(output), *defaults, *flags]


def train(data: Path | str, output: Path, *flags: str) -> Result:
    return CliRunner().invoke(main, train_arguments(data, output, *flags))


def failed_train(data: Path | str, output: Path, *flags: str) -> str:
    """Run a `train` command that must fail with status 1 and without files, and return its messages."""
    result = train(data, output, *flags)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    assert not list(output.glob("*"))
    return result.output


def read_log(output: Path) -> dict[str, Any]:
    log: dict[str, Any] = json.loads((output / "run_log.json").read_text(encoding="utf-8"))
    return log


def read_state(output: Path) -> dict[str, torch.Tensor]:
    return dict(checkpoint.load_checkpoint(output / "model.safetensors").state)


def is_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Return whether two state dicts have the same keys and identical tensors."""
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
