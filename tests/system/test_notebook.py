"""notebooks/devices.ipynb, as it stands."""

import shutil
from pathlib import Path

import pytest
from nbclient import NotebookClient
from nbformat import v4

from tests.support import REPOSITORY

NOTEBOOKS = REPOSITORY / "notebooks"


def test_the_notebook_runs(tmp_path: Path) -> None:
    """All cells run on the results that are kept beside it: tables, and a plot."""
    pytest.importorskip("matplotlib", reason="needs the extra train")
    shutil.copytree(NOTEBOOKS / "results", tmp_path / "results")
    text = (NOTEBOOKS / "devices.ipynb").read_text(encoding="utf-8")
    notebook = v4.reads(text)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("resnet50" in output.get("data", {}).get("text/markdown", "") for output in shown)
    assert any("image/png" in output.get("data", {}) for output in shown)
