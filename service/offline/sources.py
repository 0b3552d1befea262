"""What a user calls pictures: files, folders, patterns, URLs and standard input."""

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

from service import __version__
from service.errors import InvalidImage, PayloadTooLarge
from service.models.weights import is_url

SUFFIXES: Final = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"))
"""What files in a folder are taken for pictures by; a file that is given is tried whatever its name."""

STANDARD_INPUT: Final = "-"
MAX_BYTES: Final = 100_000_000
"""The largest picture that is read, in bytes: so much of a URL or a pipe, which may never end."""
_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class Source:
    """A picture that is not read yet. `read` raises ServiceError, with a message for people."""

    name: str
    read: Callable[[], bytes]


def find(names: Iterable[str]) -> Iterator[Source]:
    """Find the pictures that `names` mean, folders with all that is below them, in the order given.

    What does not exist, or holds no picture, becomes a source that says so when it is read, so that the
    others go on.
    """
    for name in names:
        if name == STANDARD_INPUT:
            # Here, not in a thread that decodes: nothing can end one that waits for a terminal.
            yield Source("standard input", partial(_limited, sys.stdin.buffer.read(MAX_BYTES + 1)))
        elif is_url(name):
            yield Source(name, partial(_fetch, name))
        elif _holds(Path.is_dir, name):
            yield from _in_folder(name)
        elif has_magic(name) and not _holds(Path.exists, name):
            yield from _matching(name)
        else:
            yield _file(Path(name))


def _in_folder(name: str) -> Iterator[Source]:
    found = sorted(
        path
        for path in Path(name).rglob("*")
        if path.suffix.lower() in SUFFIXES and _holds(Path.is_file, path)
    )
    yield from map(_file, found)
    if not found:
        yield _absent(name, f"the folder holds no pictures ({', '.join(sorted(SUFFIXES))})")


def _matching(pattern: str) -> Iterator[Source]:
    found = sorted(iglob(pattern, recursive=True))  # noqa: PTH207  # Path.glob wants relative ones
    for name in found:
        if not _holds(Path.is_dir, name):
            yield _file(Path(name))
        elif "**" not in pattern:  # which has found what is in the folder as well
            yield from _in_folder(name)
    if not found:
        yield _absent(pattern, "nothing matches this pattern")


def _holds(question: Callable[[Path], bool], path: str | Path) -> bool:
    """Ask a path something; no, too, where nobody may ask, which reading it will tell."""
    try:
        return question(Path(path))
    except OSError:
        return False


def _file(path: Path) -> Source:
    return Source(str(path), partial(_read, path))


def _absent(name: str, reason: str) -> Source:
    def read() -> bytes:
        raise InvalidImage(reason)

    return Source(name, read)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return _limited(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise InvalidImage(f"it cannot be read: {error.strerror}") from error
    except ValueError as error:  # a null byte in the name
        raise InvalidImage(f"it cannot be read: {error}") from error


def _fetch(url: str) -> bytes:
    request = Request(url, headers={"User-Agent": f"resnet-service/{__version__}"})  # noqa: S310
    try:
        with urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310
            return _limited(response.read(MAX_BYTES + 1))
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, HTTPError):
            error.close()  # it is the response too, with its connection
        raise InvalidImage(f"it cannot be fetched: {error}") from error


def _limited(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise PayloadTooLarge(f"it has more than {MAX_BYTES:,} bytes")
    return data
