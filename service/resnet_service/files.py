"""Atomic file writes, checks whether a path can be read or written, and the home and cache folders."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile, gettempdir

from resnet_service.errors import first_line


def app_cache_dir() -> Path:
    """Return the folder for files that can be recreated, by the XDG base directory specification."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "resnet-service"


def check_regular_file(path: Path) -> None:
    """Raise OSError if `path`, which may be a link, is not a regular file: to open a named pipe can block.

    Raises ValueError for a path that the file system does not accept.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))


def read_small_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises OSError, also if it has more than `max_bytes` bytes, and ValueError as `check_regular_file` does.
    """
    check_regular_file(path)
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {max_bytes:,} bytes", str(path))
    return content


def describe_os_error(error: OSError | ValueError) -> str:
    """Return the reason without the path. A path that the file system does not accept raises ValueError."""
    return getattr(error, "strerror", None) or first_line(error)


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


def set_folder_variables() -> None:
    """Set the variables of folders that libraries need, before they are imported, if the user has none.

    HOME is / for a user without a home folder, as in container engines: `~` would have no meaning, and
    libraries fail or create a folder of this name. TORCHINDUCTOR_CACHE_DIR, which PyTorch creates when it is
    imported, is in the cache folder, or if that cannot be written, in the temporary folder; its default needs
    the name of the user. Raises OSError if a temporary folder is not available either.
    """
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - Path.expanduser raises
        os.environ["HOME"] = "/"
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        folder = app_cache_dir() / "inductor"
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(existing, os.W_OK):
            folder = Path(gettempdir()) / f"torchinductor_{os.getuid()}"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


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
