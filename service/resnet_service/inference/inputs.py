"""What a user calls images: files, folders, patterns, URLs and standard input."""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from glob import has_magic, iglob
from http.client import HTTPException
from pathlib import Path
from typing import Final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from resnet_service import __version__
from resnet_service.errors import InvalidImageError, PayloadTooLarge
from resnet_service.models.weights import is_url

SUFFIXES: Final = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"))
"""What files in a folder are taken for images by; a file that is given is tried whatever its name."""

STANDARD_INPUT: Final = "-"
MAX_BYTES: Final = 100_000_000
"""The largest image that is read, in bytes: so much of a URL or a pipe, which may never end."""
_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class ImageInput:
    """An image that is not read yet. `read` raises ServiceError, with a message for people."""

    name: str
    read: Callable[[], bytes]


def discover_inputs(names: Iterable[str]) -> Iterator[ImageInput]:
    """Find the images that `names` mean, folders with all that is below them, in the order given.

    What does not exist, or holds no image, becomes a source that says so when it is read, so that the
    others go on.
    """
    for name in names:
        if name == STANDARD_INPUT:
            # Here, not in a thread that decodes: nothing can end one that waits for a terminal.
            yield ImageInput("standard input", partial(_limited, sys.stdin.buffer.read(MAX_BYTES + 1)))
        elif is_url(name):
            yield ImageInput(name, partial(_fetch, name))
        elif _safe_stat(Path.is_dir, name):
            yield from _in_folder(name)
        elif has_magic(name) and not _safe_stat(Path.exists, name):
            yield from _matching(name)
        else:
            yield _file(Path(name))


def _in_folder(name: str) -> Iterator[ImageInput]:
    found = sorted(
        path
        for path in Path(name).rglob("*")
        if path.suffix.lower() in SUFFIXES and _safe_stat(Path.is_file, path)
    )
    yield from map(_file, found)
    if not found:
        yield _missing(name, f"the folder holds no images ({', '.join(sorted(SUFFIXES))})")


def _matching(pattern: str) -> Iterator[ImageInput]:
    found = sorted(iglob(pattern, recursive=True))  # noqa: PTH207  # Path.glob wants relative ones
    for name in found:
        if not _safe_stat(Path.is_dir, name):
            yield _file(Path(name))
        elif "**" not in pattern:  # which has found what is in the folder as well
            yield from _in_folder(name)
    if not found:
        yield _missing(pattern, "nothing matches this pattern")


def _safe_stat(question: Callable[[Path], bool], path: str | Path) -> bool:
    """Ask a path something; no, too, where nobody may ask, which reading it will tell."""
    try:
        return question(Path(path))
    except OSError:
        return False


def _file(path: Path) -> ImageInput:
    return ImageInput(str(path), partial(_read, path))


def _missing(name: str, reason: str) -> ImageInput:
    def read() -> bytes:
        raise InvalidImageError(reason)

    return ImageInput(name, read)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return _limited(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise InvalidImageError(f"it cannot be read: {error.strerror}") from error
    except ValueError as error:  # a null byte in the name
        raise InvalidImageError(f"it cannot be read: {error}") from error


def _fetch(url: str) -> bytes:
    request = Request(url, headers={"User-Agent": f"resnet-service/{__version__}"})  # noqa: S310
    try:
        with urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310
            return _limited(response.read(MAX_BYTES + 1))
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, HTTPError):
            error.close()  # it is the response too, with its connection
        raise InvalidImageError(f"it cannot be fetched: {error}") from error


def _limited(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise PayloadTooLarge(f"it has more than {MAX_BYTES:,} bytes")
    return data
