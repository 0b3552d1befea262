"""Atomic file writes, checks whether a path can be written, and the cache folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile


def app_cache_dir() -> Path:
    """Return the folder for files that can be recreated, by the XDG base directory specification."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "resnet-service"


def check_writable_file(path: Path) -> None:
    """Raise OSError if `atomic_write` cannot write `path`."""
    temporary = _temporary_path(path)
    temporary.touch()
    temporary.unlink()


def check_writable_directory(path: Path) -> None:
    """Raise OSError if `path` is not a directory that can be written, or created with its parents."""
    absolute = path.absolute()
    existing = next(folder for folder in (absolute, *absolute.parents) if folder.exists())
    with TemporaryFile(dir=existing):
        pass


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename it to `path` if the block succeeds.

    `path` is always the complete old file or the complete new one. If the process is killed, its temporary
    file stays until the next write replaces it.
    """
    temporary = _temporary_path(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # otherwise a power failure could leave an empty file under the new name
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
