"""The notebook notebooks/devices.ipynb."""

import shutil
from pathlib import Path

import pytest
from nbclient import NotebookClient
from nbformat import v4

from tests.support import REPOSITORY

NOTEBOOKS = REPOSITORY / "notebooks"


def test_notebook_runs_with_the_committed_results(tmp_path: Path) -> None:
    """Its cells print tables and draw a plot."""
    pytest.importorskip("matplotlib", reason="needs the extra train")
    shutil.copytree(NOTEBOOKS / "results", tmp_path / "results")
    text = (NOTEBOOKS / "devices.ipynb").read_text(encoding="utf-8")
    notebook = v4.reads(text)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("resnet50" in output.get("data", {}).get("text/markdown", "") for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
