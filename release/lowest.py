"""Run tests with the lowest versions of the dependencies that `pyproject.toml` allows.

    python -m release.lowest build/lowest

uv resolves the direct dependencies of the package and of its extras to their lowest versions, pip installs
them into an environment in that folder, and pytest runs the tests of the parts that use them. The ranges in
`pyproject.toml` are those that pass. The extras ray, quantize and ui, which have many dependencies of their
own, are not part of it.
"""

import os
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

from release.lock import REPOSITORY

EXTRAS: Final = (
    "client",
    "explain",
    "grpc",
    "heif",
    "onnx",
    "openvino",
    "parquet",
    "timm",
    "traces",
    "train",
)
TOOLS: Final = ("hypothesis", "psutil", "pytest", "pytest-xdist", "tritonclient")
"""What the tests need, in the versions of requirements-dev.lock."""
TESTS: Final = (
    "tests/unit/test_cli.py",
    "tests/unit/test_checkpoints.py",
    "tests/unit/test_decode.py",
    "tests/unit/test_decode_jpeg.py",
    "tests/unit/test_explanations.py",
    "tests/unit/test_http_connections.py",
    "tests/unit/test_http_protocol.py",
    "tests/unit/test_model_weights.py",
    "tests/unit/test_models.py",
    "tests/unit/test_onnx_export.py",
    "tests/unit/test_onnx_files.py",
    "tests/unit/test_openvino.py",
    "tests/unit/test_plots.py",
    "tests/unit/test_prediction_log.py",
    "tests/unit/test_preprocess.py",
    "tests/unit/test_rpc_codec.py",
    "tests/unit/test_rpc_health.py",
    "tests/unit/test_runtimes.py",
    "tests/unit/test_sandbox.py",
    "tests/unit/test_settings.py",
    "tests/unit/test_training_trainer.py",
    "tests/integration/test_client.py",
    "tests/integration/test_explain.py",
    "tests/integration/test_onnx_serving.py",
    "tests/integration/test_openapi.py",
    "tests/integration/test_predict.py",
    "tests/integration/test_security.py",
    "tests/integration/test_uploads.py",
)


def lowest_requirements(folder: Path) -> Path:
    """Write a lock file with the lowest versions for this Python, with hashes, and return its path."""
    locked = (REPOSITORY / "requirements-dev.lock").read_text(encoding="utf-8")
    tools = folder / "tools.in"
    pins = (re.search(rf"^{tool}==\S+", locked, re.MULTILINE) for tool in TOOLS)
    tools.write_text("".join(f"{pin[0]}\n" for pin in pins if pin), encoding="utf-8")
    lock = folder / "lowest.lock"
    extras = [f"--extra={extra}" for extra in EXTRAS]
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--resolution", "lowest-direct"]
    options = ["--generate-hashes", "--no-annotate", "--python", sys.executable, "--output-file", str(lock)]
    subprocess.run([*command, *options, *extras, "pyproject.toml", str(tools)], cwd=REPOSITORY, check=True)
    return lock


def main(folder: Path) -> int:
    """Install the lowest versions into `folder`, run the tests, and return the exit status of pytest."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = lowest_requirements(folder)
    environment = folder / "environment"
    venv.create(environment, with_pip=True, clear=True)
    python = str(environment / "bin/python")
    subprocess.run([python, REPOSITORY / "deploy/install_packages.py", lock], check=True)
    pytest = [
        python,
        "-m",
        "pytest",
        "--numprocesses",
        "logical",
        "--maxprocesses",
        "4",
        "--dist",
        "loadfile",
    ]
    paths = f"{REPOSITORY}:{REPOSITORY / 'service'}"
    # Warnings of old versions concern newer ones, which other tests use.
    warnings = ["--override-ini", "filterwarnings=default"]
    return subprocess.run(
        [*pytest, *warnings, *TESTS], cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": paths}, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
