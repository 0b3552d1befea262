"""`resnet-service explain`, run in the test process: files, the table, JSON, the class, and errors."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from resnet_service.cli import main
from resnet_service.images import decode_image
from resnet_service.models import load_model
from tests.support import PHOTOGRAPHS
from tests.support.images import encode, make_image
from tests.support.server import only_once

pytestmark = only_once

DOG = str(PHOTOGRAPHS / "dog.jpg")


def explain(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["explain", "--model", "cifar10", "--device", "cpu", *arguments])


def test_images_with_the_heat_are_written(tmp_path: Path) -> None:
    """One PNG for each image, also for two of the same name, and a table with the classes."""
    copy = tmp_path / "copy" / "dog.jpg"
    copy.parent.mkdir()
    copy.write_bytes(Path(DOG).read_bytes())
    output = tmp_path / "heat"
    result = explain(DOG, str(copy), "--output", str(output))
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in output.iterdir()) == ["dog-2.png", "dog.png"]
    header, first, second = result.stdout.splitlines()
    assert header.split() == ["file", "class", "probability"]
    for line, name in ((first, "dog.png"), (second, "dog-2.png")):
        file, label, probability = line.split()
        assert (file, label) == (str(output / name), "dog")
        assert 10 < float(probability.removesuffix("%")) <= 100
    preprocessing = load_model("cifar10").preprocessing
    heat = decode_image((output / "dog.png").read_bytes(), preprocessing)
    assert (heat != decode_image(Path(DOG).read_bytes(), preprocessing)).any()


def test_json_has_the_heat(tmp_path: Path) -> None:
    """One object for each image, of the class that was chosen by its label."""
    result = explain(DOG, "--label", "CAT", "-o", str(tmp_path), "--json")
    [line] = [json.loads(text) for text in result.stdout.splitlines()]
    assert (line["image"], line["file"]) == (DOG, str(tmp_path / "dog.png"))
    assert (line["class_id"], line["label"]) == (3, "cat")
    assert np.array(line["heat"]).shape == (4, 4)
    by_id = explain(DOG, "--class-id", "3", "-o", str(tmp_path), "--json")
    assert json.loads(by_id.stdout) == line


def test_image_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    """The others are explained, and the exit status is 1."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "good.png").write_bytes(encode(make_image(), "PNG"))
    (folder / "bad.jpg").write_bytes(b"text")
    result = explain(str(folder), "-o", str(tmp_path / "heat"))
    assert result.exit_code == 1
    assert [path.name for path in (tmp_path / "heat").iterdir()] == ["good.png"]
    assert "bad.jpg: " in result.stderr
    assert "1 of 2 images could not be explained" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--label", "dogs"], 1, "did you mean 'dog'?"),
        (["--class-id", "10"], 1, "class_id must be from 0 to 9, got 10"),
        (["--label", "dog", "--class-id", "5"], 1, "exclude each other"),
        (["--opacity", "2"], 2, "--opacity"),
    ],
)
def test_invalid_option_is_named(tmp_path: Path, arguments: list[str], status: int, message: str) -> None:
    result = explain(DOG, "-o", str(tmp_path), *arguments)
    assert result.exit_code == status
    assert message in result.stderr
