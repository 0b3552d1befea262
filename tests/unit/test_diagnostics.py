"""`resnet-service doctor` and `inspect`: what is here, and what a model is made of."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from resnet_service.cli import main
from tests.support.images import encode, make_image

ROOM = {"memory", "cache of weights", "cache of compiled networks"}
"""What a machine that is fit may be short of just now."""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def findings(result: Result) -> dict[str, dict[str, str]]:
    return {line["name"]: line for line in map(json.loads, result.stdout.splitlines())}


def test_the_doctor_looks_at_everything() -> None:
    """Versions, devices, processor, caches and a convolution that is compared; 0 where nothing is wrong."""
    result = run("doctor", "--json")
    found = findings(result)
    assert found["PyTorch"]["detail"] == torch.__version__
    expected = {"Python", "torchvision", "CUDA", "Apple MPS", "processor", "memory", "cache of weights"}
    assert expected | {"decoder", "convolution on cpu"} <= set(found)
    problems = {line["name"] for line in found.values() if line["state"] == "problem"}
    assert problems <= ROOM
    assert result.exit_code == bool(problems)


def test_the_doctor_for_people() -> None:
    """A line for each finding, and a last one that sums up."""
    result = run("doctor")
    assert "✓ PyTorch" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last.endswith("problems") if result.exit_code else last.startswith("Nothing keeps")


def test_a_problem_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that is a file cannot be written to: the finding says so, and the exit status is 1."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file" / "torch"))
    result = run("doctor", "--json")
    assert result.exit_code == 1
    assert findings(result)["cache of weights"]["state"] == "problem"
    assert "TORCH_HOME" in findings(result)["cache of weights"]["hint"]


def inspected(*arguments: str) -> dict[str, Any]:
    result = run("inspect", "--model", *arguments, "--json")
    assert result.exit_code == 0, result.output
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


def test_resnet50_is_what_it_is_known_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """25,557,032 parameters, 53 convolutions, 4.09 G multiply-adds, 224 pixels, 1,000 classes; offline."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    facts = inspected("resnet50")
    assert facts["parameters"] == 25_557_032
    assert facts["layers"]["Conv2d"] == facts["layers"]["BatchNorm2d"] == 53
    assert facts["layers"]["Linear"] == 1
    assert facts["operations"] / 2e9 == pytest.approx(4.09, abs=0.01)
    assert len(facts["labels"]) == 1000
    assert facts["preprocessing"]["crop"] == 224
    assert facts["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert facts["file_bytes"] is None


def test_a_models_facts_for_people() -> None:
    """The bundled model: its input, outputs and size on disk in a table."""
    assert 1_000_000 < inspected("bundled")["file_bytes"] < 25_000_000
    result = run("inspect", "--model", "bundled")
    assert result.exit_code == 0, result.output
    for words in ("[N, 3, 32, 32]", "[N, 10]", "airplane", "MB", "Conv2d", "multiply-adds"):
        assert words in result.stdout


def test_what_cannot_be_inspected_is_a_message(tmp_path: Path) -> None:
    """A file that is no checkpoint, a name that is no model."""
    (tmp_path / "dog.safetensors").write_bytes(encode(make_image()))
    for name in (str(tmp_path / "dog.safetensors"), "resnet5000"):
        result = run("inspect", "--model", name)
        assert result.exit_code == 1
        assert "cannot load" in result.stderr
