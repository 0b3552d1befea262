"""A fine-tuned state dict with its own classes: converted, classified with and served."""

import json
from pathlib import Path

import httpx
import pytest
import torch
from click.testing import CliRunner, Result

from resnet_service.cli import main
from resnet_service.models.checkpoint import load_checkpoint
from resnet_service.settings import Settings
from tests.support import PHOTOGRAPHS
from tests.support.models import CLASSIFIER, random_classifier, write_checkpoint
from tests.support.server import serving

LABELS = ("ant", "bee", "wasp")
PREPROCESSING = '{"resize": 96, "crop": 64}'
DOG = PHOTOGRAPHS / "dog.jpg"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Return a folder with a state dict and its labels."""
    state = {f"module.{key}": value for key, value in random_classifier(len(LABELS)).state_dict().items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "best-20240101.pth")
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    return tmp_path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def options(files: Path) -> tuple[str | Path, ...]:
    return (
        *("--model", CLASSIFIER, "--weights", files / "best-20240101.pth", "--labels", files / "labels.txt"),
        *("--preprocessing", PREPROCESSING),
    )


def ranking(result: Result) -> list[tuple[str, float]]:
    assert result.exit_code == 0, result.output
    return [(item["label"], item["probability"]) for item in json.loads(result.stdout)["predictions"]]


def test_converted_checkpoint_needs_no_other_file(files: Path) -> None:
    """It contains the labels and the preprocessing, and classifies as the files do."""
    output = files / "mine.safetensors"
    result = run("convert", *options(files), "--output", output)
    assert result.exit_code == 0, result.output
    assert f"{output}: {CLASSIFIER}, 3 classes, " in result.stdout
    before = ranking(run("classify", DOG, "--json", *options(files)))
    (files / "best-20240101.pth").unlink()
    (files / "labels.txt").unlink()
    after = ranking(run("classify", DOG, "--json", "--model", output))
    assert {label for label, _ in after} == set(LABELS)
    assert after == before
    checkpoint = load_checkpoint(output)
    assert (checkpoint.network, checkpoint.labels) == (CLASSIFIER, LABELS)
    assert (checkpoint.preprocessing.resize, checkpoint.preprocessing.crop) == (96, 64)
    assert str(checkpoint.training["converted_from"]).endswith("best-20240101.pth")


def test_convert_prints_json(files: Path) -> None:
    output = files / "mine.safetensors"
    result = run("convert", *options(files), "-o", output, "--json")
    assert json.loads(result.stdout) == {
        "output": str(output),
        "network": CLASSIFIER,
        "classes": 3,
        "file_bytes": output.stat().st_size,
    }


def test_labels_of_a_checkpoint_are_changed(tmp_path: Path) -> None:
    """The facts of its training run stay."""
    write_checkpoint(tmp_path / "ten.safetensors")
    labels = [f"class {index}" for index in range(10)]
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    source, output = tmp_path / "ten.safetensors", tmp_path / "new.safetensors"
    result = run("convert", "--model", source, "--labels", tmp_path / "labels.json", "-o", output)
    assert result.exit_code == 0, result.output
    original, converted = load_checkpoint(source), load_checkpoint(output)
    assert converted.labels == tuple(labels)
    assert converted.network == original.network
    assert converted.training == {**original.training, "converted_from": source.name}


def test_convert_without_labels_writes_nothing(files: Path) -> None:
    weights = files / "best-20240101.pth"
    result = run("convert", "--model", CLASSIFIER, "--weights", weights, "-o", files / "mine.safetensors")
    assert result.exit_code == 1
    assert "the weights are for 3 classes" in result.stderr
    assert "--labels FILE" in result.stderr
    assert not (files / "mine.safetensors").exists()


def test_inspect_shows_own_classes(files: Path) -> None:
    summary = json.loads(run("inspect", *options(files), "--json").stdout)
    assert summary["labels"] == list(LABELS)
    assert summary["preprocessing"]["crop"] == 64


def test_missing_labels_file_is_a_usage_error(files: Path) -> None:
    result = run("classify", DOG, "--model", CLASSIFIER, "--labels", files / "missing.txt")
    assert result.exit_code == 2
    assert "missing.txt" in result.stderr


def test_wrong_hash_is_an_error(files: Path) -> None:
    result = run("classify", DOG, *options(files), "--weights-sha256", "00000000")
    assert result.exit_code == 1
    assert "SHA-256" in result.stderr


def test_own_classes_are_served(files: Path) -> None:
    """With the settings of the same names as the options."""
    settings = Settings(
        model=CLASSIFIER,
        weights=str(files / "best-20240101.pth"),
        labels=files / "labels.txt",
        preprocessing=PREPROCESSING,
    )
    with serving(settings) as service:
        response = httpx.post(f"{service.url}/predict", files={"file": DOG.read_bytes()}, timeout=60)
        predictions = response.raise_for_status().json()["predictions"]
    assert {item["label"] for item in predictions} == set(LABELS)
