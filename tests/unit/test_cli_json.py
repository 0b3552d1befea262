"""--json of the commands whose other tests read the text output."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from resnet_service.cli import main
from tests.support import PHOTOGRAPHS, REPOSITORY
from tests.support.training import train, write_images

CAT = str(PHOTOGRAPHS / "cat.jpg")


def json_lines(*arguments: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_activations_print_one_object_per_layer(tmp_path: Path) -> None:
    """Each object names the layer, its file and its shape."""
    lines = json_lines("activations", CAT, "--layer", "conv1", "--layer", "layer1", "-o", str(tmp_path))
    assert [line["layer"] for line in lines] == ["conv1", "layer1"]
    for line in lines:
        assert Path(line["file"]).exists()
        assert line["shape"] == [64, 32, 32]


def test_bench_report_prints_results_and_files(tmp_path: Path) -> None:
    """One object has the content of the result files and the paths of the report."""
    results = REPOSITORY / "notebooks" / "results" / "amd-epyc-2-cores.json"
    [report] = json_lines("bench", "report", str(results), "--output", str(tmp_path))
    assert len(report["runs"]) == 1
    assert str(tmp_path / "report.md") in report["files"]


def test_quantize_prints_the_agreement(tmp_path: Path) -> None:
    """One object describes the checkpoint and the images that could not be read."""
    pytest.importorskip("nncf", reason="needs the extra quantize")
    data, output = tmp_path / "data", tmp_path / "int8.safetensors"
    data.mkdir()
    (data / "cat.jpg").write_bytes(Path(CAT).read_bytes())
    (data / "notes.txt").write_text("This is not an image.")
    [line] = json_lines("quantize", "--data", str(data), "--output", str(output))
    assert line["file_bytes"] == output.stat().st_size
    assert line["calibrated_on"] == 1
    assert 0 <= line["agreement"] <= 1
    assert list(line["unreadable"]) == [str(data / "notes.txt")]


def test_train_prints_one_object_per_seed(tmp_path: Path) -> None:
    """Two seeds are two runs with an object each, and no text."""
    write_images(tmp_path / "data", 8)
    result = train(tmp_path / "data", tmp_path / "run", "--epochs", "1", "--seeds", "1,2", "--json")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["seed"] for line in lines] == [1, 2]
    for line in lines:
        assert Path(line["output"]).exists()
        assert 0 <= line["accuracy"] <= 1
