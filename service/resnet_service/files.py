"""Atomic file writes and the cache folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def app_cache_dir() -> Path:
    """Return the folder for files that can be recreated, by the XDG base directory specification."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "resnet-service"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename it to `path` if the block succeeds.

    `path` is always the complete old file or the complete new one. If the process is killed, its temporary
    file stays until the next write replaces it.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # otherwise a power failure could leave an empty file under the new name
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
