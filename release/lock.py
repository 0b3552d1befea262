"""The packages of a lock file."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from packaging.utils import canonicalize_name

REPOSITORY: Final = Path(__file__).parents[1]
SERVING_LOCK: Final = REPOSITORY / "requirements.lock"
"""The packages for serving, as `make install` and the container images install them."""


def locked_versions(lock: Path) -> Mapping[str, frozenset[str]]:
    """Return the versions of each package in `lock`, by its canonical name, in alphabetical order.

    A package has several versions if they depend on the Python version or the platform.
    """
    versions: dict[str, set[str]] = {}
    for name, version in re.findall(
        r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock.read_text(encoding="utf-8"), re.MULTILINE
    ):
        versions.setdefault(canonicalize_name(name), set()).add(version)
    return {name: frozenset(versions[name]) for name in sorted(versions)}
