"""`resnet-service doctor` and `inspect`: checks of the machine, and summaries of models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from resnet_service.cli import main
from resnet_service.diagnostics import checks
from resnet_service.diagnostics.checks import run_checks
from tests.support.images import encode, make_image

CAPACITY_CHECKS = {"memory", "cache of weights", "cache of compiled networks"}
"""Checks that depend on the current load of the machine."""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def parse_checks(result: Result) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in map(json.loads, result.stdout.splitlines())}


def test_doctor_checks_versions_devices_caches_and_results() -> None:
    """The status is 0 if there are no problems."""
    result = run("doctor", "--json")
    checked = parse_checks(result)
    assert checked["PyTorch"]["detail"] == torch.__version__
    expected = {"Python", "torchvision", "CUDA", "Apple MPS", "processor", "memory", "cache of weights"}
    assert expected | {"decoder", "convolution on cpu"} <= set(checked)
    problems = {check["name"] for check in checked.values() if check["state"] == "problem"}
    assert problems <= CAPACITY_CHECKS
    assert result.exit_code == bool(problems)


def test_doctor_prints_a_line_per_check_and_a_summary() -> None:
    result = run("doctor")
    assert "✓ PyTorch" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last == "No problems found." or (result.exit_code == 1 and last.endswith("found"))


def test_unwritable_cache_is_a_problem_with_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The status is then 1."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file" / "torch"))
    result = run("doctor", "--json")
    assert result.exit_code == 1
    assert parse_checks(result)["cache of weights"]["state"] == "problem"
    assert "TORCH_HOME" in parse_checks(result)["cache of weights"]["hint"]


def test_wrong_result_of_a_device_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution that differs from fp64 by more than the tolerance is reported."""
    monkeypatch.setattr(checks, "_MAX_DIFFERENCE", 0.0)
    [check] = [check for check in run_checks() if check.name == "convolution on cpu"]
    assert check.state == "problem"
    assert "do not serve" in check.hint


def inspect(*arguments: str) -> dict[str, Any]:
    result = run("inspect", *arguments, "--json")
    assert result.exit_code == 0, result.output
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


def test_resnet50_has_its_published_properties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """25,557,032 parameters, 53 convolutions and 4.09 G multiply-adds; no weights are downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    summary = inspect("--model", "resnet50")
    assert summary["parameters"] == 25_557_032
    assert summary["layers"]["Conv2d"] == summary["layers"]["BatchNorm2d"] == 53
    assert summary["layers"]["Linear"] == 1
    assert summary["operations"] / 2e9 == pytest.approx(4.09, abs=0.01)
    assert len(summary["labels"]) == 1000
    assert summary["preprocessing"]["crop"] == 224
    assert summary["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert summary["file_bytes"] is None


def test_inspect_prints_input_outputs_and_size_on_disk() -> None:
    assert 1_000_000 < inspect("--model", "cifar10")["file_bytes"] < 25_000_000
    result = run("inspect", "--model", "cifar10")
    assert result.exit_code == 0, result.output
    for words in ("[N, 3, 32, 32]", "[N, 10]", "airplane", "MB", "Conv2d", "multiply-adds"):
        assert words in result.stdout


def test_unknown_model_or_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "dog.safetensors").write_bytes(encode(make_image()))
    for name in (str(tmp_path / "dog.safetensors"), "resnet5000"):
        result = run("inspect", "--model", name)
        assert result.exit_code == 1
        assert "cannot load" in result.stderr
