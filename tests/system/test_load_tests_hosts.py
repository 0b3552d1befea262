"""The load tests about whole hosts, with small sizes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import PHOTOGRAPHS, REPOSITORY
from tests.support.training import write_data

pytestmark = [
    pytest.mark.exclusive,
    pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk: apt-get install wrk"),
]


def load_tests(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "load_tests", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_gpu_check_runs_on_a_cpu_without_a_network(tmp_path: Path) -> None:
    """Each section has its rows, and all checks pass; a training that misses its accuracy fails."""
    pytest.importorskip("ray", reason="requires the extra ray")
    sizes = ("--workers", "0,2", "--batch-sizes", "1,4", "--seconds", "1", "--epochs", "1")
    inputs = ("--images", PHOTOGRAPHS, "--data", write_data(tmp_path / "data"))
    where = ("--device", "cpu", "--model", "cifar10", "--output", tmp_path / "out")
    result = load_tests("gpu-check", *where, *inputs, *sizes, "--accuracy", "0")
    assert result.returncode == 0, result.stdout + result.stderr
    table = (tmp_path / "out" / "gpu-check.md").read_text()
    for name in (
        "fp32: difference from the CPU in fp32",
        "bf16: difference from the CPU in fp32",
        "bf16: cosine similarity of embeddings to the CPU in fp32",
        "cifar10, fp32, batches of 4",
        "one process: start-up",
        "2 workers: start-up",
        "batch inference, cifar10",
        "training on data",
    ):
        assert f"| {name} |" in table
    assert len(re.findall(r"\| 2 workers, [\d]+ KB, \d+ connections \| [\d,]+ requests/s", table)) == 2
    assert "failed" not in table


def test_gpu_check_reports_what_fails_and_continues(tmp_path: Path) -> None:
    """Without a GPU, each section says why, and the exit status is 1."""
    result = load_tests("gpu-check", "--device", "cuda", "--images", PHOTOGRAPHS, "--output", tmp_path)
    assert result.returncode == 1
    table = (tmp_path / "gpu-check.md").read_text()
    assert table.count("**failed**") >= 4
    assert "cuda" in table


def test_scaling_measures_and_computes(tmp_path: Path) -> None:
    """The table has one process and workers with two images, whole batches, and hosts of 4 to 64 cores."""
    result = load_tests("scaling", "--workers", "1", "--seconds", "1", "--rounds", "1", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "scaling.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    measured = [row for row in rows if row[0].endswith("KB")]
    assert [row[1] for row in measured] == ["0", "1", "0", "1", "1"]
    assert float(measured[-1][-1]) > 16  # images per batch
    hosts = [row for row in rows if row[0] in {"4", "8", "16", "32", "64"}]
    assert len(hosts) == 5
    with_gpu = [float(row[2].replace(",", "")) for row in hosts]
    assert with_gpu == sorted(with_gpu)
