"""The structure of the package: imports point down, and each heavy library is imported in one place."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

from tests.support import REPOSITORY

SOURCE_ROOT: Final = REPOSITORY / "service"
PACKAGE: Final = SOURCE_ROOT / "resnet_service"

LAYERS: Final = [
    {
        *(
            "errors",
            "settings",
            "schemas",
            "log_config",
            "metric_labels",
            "metric_registry",
            "metrics",
            "tracing",
        ),
        *("machine", "cgroups", "files", "figures", "malloc", "healthcheck", "storage"),
        *("environment", "hints", "option_types", "prediction_log_metrics", "proxies", "urls"),
    },
    {"devices", "images", "batching", "client"},
    {"models"},
    {"runtimes"},
    {"inference", "training", "explanations", "prediction_log"},
    {"diagnostics", "benchmark", "batch_inference"},
    {"server"},
    {"integrations"},
    {"cli"},
    {"__main__"},
]
"""From the lowest to the highest; a module may import from its own layer and from those below."""

ONLY_IN: Final = {
    "fastapi": {"server", "integrations"},
    "starlette": {"server"},
    "uvicorn": {"server"},
    "click": {"cli"},
    "google": {"models", "server"},
    "grpc": {"server"},
    "grpc_health": {"server"},
    "grpc_reflection": {"server"},
    "prometheus_client": {
        *("diagnostics", "metric_registry", "metrics", "prediction_log_metrics", "server"),
    },
    "opentelemetry": {"tracing"},
    "PIL": {"images"},
    "simplejpeg": {"images"},
    "openvino": {"runtimes"},
    "nncf": {"runtimes"},
    "onnx": {"models", "runtimes"},
    "onnxruntime": {"runtimes"},
    "captum": {"explanations"},
    "matplotlib": {"figures", "training", "benchmark"},
    "httpx": {"client"},
    "pooch": {"models"},
    "yaml": {"models"},
    "ray": {"batch_inference", "integrations"},
    "pyarrow": {"batch_inference", "prediction_log", "storage"},
    "fsspec": {"batch_inference"},
    "streamlit": {"integrations"},
    "pandas": {"integrations"},
}
"""Library -> the parts of the package that may import it."""

MODULES: Final = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py" and not path.name.endswith("_pb2.py")  # generated
)
MAX_LINES: Final = 300


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _imports(path: Path, *, at_start: bool = False) -> Iterator[str]:
    """Yield the modules that a file imports; with `at_start` only those imported when it is loaded."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                is_module = (SOURCE_ROOT / name.replace(".", "/")).with_suffix(".py").exists()
                is_package = (SOURCE_ROOT / name.replace(".", "/")).is_dir()
                yield name if is_module or is_package else node.module
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if not (at_start and (function or _is_type_checking(node))):
            waiting.extend(ast.iter_child_nodes(node))


def _part(path: Path) -> str:
    """Return the part of the package that a file belongs to: a folder, or a module beside the folders."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _layer(part: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if part in layer)


def _module_id(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=_module_id)
def test_imports_point_down(path: Path) -> None:
    """A module imports from its own layer and from lower ones, and training does not import inference."""
    part = _part(path)
    for module in _imports(path):
        root, _, rest = module.partition(".")
        if root == "resnet_service" and rest:
            imported = rest.split(".")[0]
            assert _layer(imported) <= _layer(part), f"{part} imports {module}"
            assert (part, imported) != ("training", "inference")
        elif root in ONLY_IN:
            assert part in ONLY_IN[root], f"{part} imports {module}"


def test_modules_do_not_import_each_other_in_a_cycle() -> None:
    """The imports that run when modules are loaded have an order."""
    names = {
        ".".join(path.relative_to(SOURCE_ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in MODULES
    }
    imports = {
        name: {module for module in _imports(path, at_start=True) if module in names and module != name}
        for name, path in names.items()
    }
    assert list(TopologicalSorter(imports).static_order())  # raises CycleError


def test_batching_imports_only_asyncio_and_errors() -> None:
    """The micro-batcher depends on no HTTP, no torch, no metrics and no logging."""
    standard = {"bisect", "collections", "contextlib", "dataclasses", "enum", "math", "time", "typing"}
    imported = {
        module
        for path in (PACKAGE / "batching").glob("*.py")
        for module in _imports(path)
        if module.split(".")[0] not in standard and not module.startswith("resnet_service.batching")
    }
    assert imported == {"asyncio", "resnet_service.errors"}


@pytest.mark.parametrize("path", MODULES, ids=_module_id)
def test_modules_are_short(path: Path) -> None:
    """A module has at most 300 lines."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
