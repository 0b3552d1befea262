"""The shipped Prometheus rules, and Prometheus' programs."""

import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from monitoring.local import CONFIGURATION

RULES_FILE: Final = CONFIGURATION / "rules.yml"
RULES: Final[list[dict[str, Any]]] = [
    rule for group in yaml.safe_load(RULES_FILE.read_text())["groups"] for rule in group["rules"]
]


def require_program(program: str) -> str:
    """Return the path of `prometheus` or `promtool`; skips the test if it is not installed."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"needs {program} (Debian's package prometheus)")
    return path


def assert_promtool(*arguments: str | Path) -> None:
    """Run promtool, which must succeed."""
    command = [require_program("promtool"), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
