"""`resnet-service classify`, run in the test process: inputs, output formats and errors."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from resnet_service.cli import main
from resnet_service.images import FORMATS, decode_image
from resnet_service.images.file_names import SUFFIXES
from resnet_service.models import load_model
from tests.support import PHOTOGRAPHS
from tests.support.file_server import FileServer
from tests.support.images import encode, make_image
from tests.support.runtimes import create_runtime
from tests.support.server import only_once

pytestmark = only_once


def classify(*arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["classify", "--model", "cifar10", *arguments], input=stdin)


def json_lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two images, one of them in a subfolder, and a text file."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    (folder / "one.jpg").write_bytes(encode(make_image(seed=1)))
    (folder / "below" / "two.PNG").write_bytes(encode(make_image(seed=2), "PNG"))
    (folder / "notes.txt").write_text("This is not an image.")
    return folder


def test_best_class_is_first_in_text_and_json() -> None:
    """A photograph of a cat: both output formats start with the class cat; --top-k limits the classes."""
    cat = str(PHOTOGRAPHS / "cat.jpg")
    text = classify(cat)
    assert text.exit_code == 0, text.output
    assert "cat.jpg" in text.stdout
    assert text.stdout.splitlines()[1].split()[:2] == ["1", "cat"]
    [line] = json_lines(classify(cat, "--json", "--top-k", "2"))
    labels = [prediction["label"] for prediction in line["predictions"]]
    assert labels[0] == "cat"
    assert len(labels) == 2


def test_embeddings_are_those_of_the_runtime() -> None:
    """With --embeddings, a JSON object has the embedding, and an option is missing without --json."""
    path, model = PHOTOGRAPHS / "cat.jpg", load_model("cifar10")
    [line] = json_lines(classify(str(path), "--json", "--embeddings", "--precision", "fp32"))
    crop = decode_image(path.read_bytes(), model.preprocessing)
    expected = create_runtime(model, "torch", "fp32").run([crop], 1, with_embeddings=True).embedding
    assert expected is not None
    assert line["embedding"] == pytest.approx(expected[0].tolist(), abs=1e-3)
    assert "embedding" not in json_lines(classify(str(path), "--json"))[0]
    without_json = classify(str(path), "--embeddings")
    assert without_json.exit_code == 2
    assert "--embeddings needs --json" in without_json.output


def test_environment_sets_the_model() -> None:
    """Without --model, the variable of `serve` counts, here that of all tests: the labels are CIFAR-10's."""
    result = CliRunner().invoke(main, ["classify", str(PHOTOGRAPHS / "cat.jpg"), "--json", "--top-k", "10"])
    assert {prediction["label"] for prediction in json_lines(result)[0]["predictions"]} >= {"cat", "frog"}


def test_without_input_photographs_of_the_package_are_classified() -> None:
    """They show a dog, a cat and a cup of coffee."""
    result = classify("--json", "--top-k", "1", "--model", "efficientnet_lite0")
    assert result.exit_code == 0, result.output
    best = {line["image"]: line["predictions"][0]["label"] for line in json_lines(result)}
    assert best.pop("cat.jpg (example)") in {"tabby", "tiger cat", "Egyptian cat"}
    assert best == {"coffee.jpg (example)": "espresso", "dog.jpg (example)": "Samoyed"}


def test_folders_patterns_files_and_standard_input(folder: Path) -> None:
    """Folders are searched recursively for images, and the results have the order of the inputs."""
    arguments = [str(folder), f"{folder}/**/*.PNG", str(folder / "one.jpg"), "-"]
    result = classify(*arguments, "--json", stdin=encode(make_image(seed=3)))
    assert result.exit_code == 0, result.output
    two, one = str(folder / "below" / "two.PNG"), str(folder / "one.jpg")
    assert [line["image"] for line in json_lines(result)] == [two, one, two, one, "standard input"]


def test_every_file_name_of_a_supported_format_is_an_image(tmp_path: Path) -> None:
    """All suffixes that Pillow has for these formats count in a folder, and the other files are named."""
    assert set(chain.from_iterable(SUFFIXES.values())) >= {
        suffix for suffix, name in Image.registered_extensions().items() if name in {*FORMATS, "MPO"}
    }
    for suffix in chain.from_iterable(SUFFIXES.values()):
        (tmp_path / f"image{suffix}").write_bytes(encode(make_image()))
    for name in ("a.txt", "b.csv", "c.pdf", "d.md", "e.json", "f.zip", ".hidden", "Thumbs.db"):
        (tmp_path / name).touch()
    result = classify(str(tmp_path), "--json")
    assert result.exit_code == 0, result.output
    assert len(json_lines(result)) == sum(map(len, SUFFIXES.values()))
    message = "skipped 6 files without the name of an image: a.txt, b.csv, c.pdf, d.md, e.json, ..."
    assert message in result.stderr


def test_urls(file_server: FileServer) -> None:
    """An image is downloaded; a URL that does not exist is the error of one image."""
    (file_server.folder / "one.jpg").write_bytes(encode(make_image()))
    result = classify(f"{file_server.url}/one.jpg", f"{file_server.url}/two.jpg", "--json")
    assert result.exit_code == 1
    valid, missing = json_lines(result)
    assert "predictions" in valid
    assert "404" in missing["error"]


def test_unreadable_inputs_are_reported_and_skipped(folder: Path) -> None:
    """Text, an empty and a truncated file, a missing file, an empty folder, a pattern without matches."""
    (folder / "empty.jpg").touch()
    (folder / "half.jpg").write_bytes(encode(make_image())[:300])
    (folder / "bare").mkdir()
    names = ["notes.txt", "empty.jpg", "half.jpg", "missing.jpg", "bare", "*.tiff", "one.jpg"]
    result = classify(*(str(folder / name) for name in names), "--json")
    assert result.exit_code == 1
    assert ["error" in line for line in json_lines(result)] == [True] * 6 + [False]
    assert "6 of 7 images could not be classified" in result.stderr
    text = classify(str(folder / "missing.jpg"), str(folder / "one.jpg"))
    assert text.exit_code == 1
    assert "No such file" in text.stderr
    assert "one.jpg" in text.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--device", "cuda:99"], 1, "cuda"),
        (["--device", "toaster"], 1, "unknown device"),
        (["--model", "resnet5000"], 1, "did you mean"),
        (["--top-k", "0"], 2, "top-k"),
        (["--nonsense"], 2, "nonsense"),
    ],
)
def test_errors_are_messages_without_traceback(arguments: list[str], status: int, message: str) -> None:
    """An unavailable model or device exits with 1, an invalid option with 2."""
    result = classify(*arguments)
    assert result.exit_code == status, result.output
    assert message in result.stderr
    assert isinstance(result.exception, SystemExit)
