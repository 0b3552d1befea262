"""The house: imports point down only, and each heavy library is known in one place."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import REPOSITORY

PACKAGE = REPOSITORY / "service" / "resnet_service"

LAYERS = [
    {
        "errors",
        "settings",
        "logs",
        "schemas",
        "hardware",
        "metrics",
        "threads",
        "files",
        "tracing",
        "healthcheck",
        "memory",
    },
    {"images", "batching", "bench"},
    {"models"},
    {"runtimes"},
    {"engine", "training", "offline"},
    {"quantization", "inspection", "doctor"},
    {"benchmark", "dataset"},
    {"client"},
    {"api", "ui"},
    {"cli", "ray_serve"},
    {"__main__"},
]
"""From the ground up; a module may import from its own layer and from those below."""

ONLY_IN = {
    "fastapi": ("api", "ray_serve"),
    "starlette": "api",
    "uvicorn": "api",
    "click": "cli",
    "prometheus_client": ("metrics", "api"),
    "PIL": "images",
    "simplejpeg": "images",
    "openvino": "runtimes",
    "nncf": "quantization",
    "matplotlib": ("training", "benchmark"),
    "rich": "cli",
    "streamlit": "ui",
    "pandas": "ui",
    "httpx": "client",
    "ray": ("dataset", "ray_serve"),
    "pyarrow": "dataset",
    "fsspec": "dataset",
    "opentelemetry": "tracing",
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "resnet_service":
            yield from (f"resnet_service.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def place(path: Path) -> str:
    """Return the top-level module of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level(module: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if module in layer)


FILES = sorted(path for path in PACKAGE.rglob("*.py") if place(path) != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    """No module imports from a layer above its own, and training never from engine or api."""
    here = place(path)
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "resnet_service" and len(parts) > 1 and parts[1] != "__version__":
            assert level(parts[1]) <= level(here), f"{here} imports {module}"
            assert not (here == "training" and parts[1] == "engine")
        elif parts[0] in ONLY_IN:
            assert here in ONLY_IN[parts[0]], f"{here} imports {module}"


def test_the_batcher_knows_asyncio_and_errors_only() -> None:
    """No HTTP, no torch, no metrics library, no logging in the micro-batcher."""
    known = {
        module
        for path in (PACKAGE / "batching").glob("*.py")
        for module in imports(path)
        if module.split(".")[0] not in ("collections", "contextlib", "dataclasses", "time", "typing")
        and not module.startswith("resnet_service.batching")
    }
    assert known == {"asyncio", "resnet_service.errors"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_are_short(path: Path) -> None:
    """A module of more than 300 lines is two modules."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
