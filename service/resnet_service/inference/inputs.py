"""Find and read the images that a user names: files, folders, patterns, URLs and standard input."""

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
from resnet_service.errors import InputError, PayloadTooLarge
from resnet_service.images.examples import example_photographs
from resnet_service.images.file_names import describe_skipped, describe_suffixes, select_images
from resnet_service.models.download import is_url

STANDARD_INPUT: Final = "-"
MAX_BYTES: Final = 100_000_000
"""The size limit of an image. It also bounds how much of a URL or a pipe is read, which may be endless."""

_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class ImageInput:
    """An image that is not read yet.

    `read` returns the encoded image; it raises InputError if that fails, and PayloadTooLarge above MAX_BYTES.
    """

    name: str
    read: Callable[[], bytes]


def discover_inputs(
    names: Iterable[str], on_message: Callable[[str], None] = lambda _: None
) -> Iterator[ImageInput]:
    """Yield the images at `names` in order; folders are searched recursively.

    `on_message` is called with a description of the files of a folder that are not images.

    A name that does not exist, or a folder or pattern without images, becomes an input whose `read` raises
    InputError, so that the other inputs are still processed.
    """
    for name in names:
        if name == STANDARD_INPUT:
            # Read here, not in a decoding thread: a thread that waits for a terminal cannot be stopped.
            yield ImageInput("standard input", partial(_limited, sys.stdin.buffer.read(MAX_BYTES + 1)))
        elif is_url(name):
            yield ImageInput(name, partial(_fetch, name))
        elif _check_path(Path.is_dir, name):
            yield from _in_folder(name, on_message)
        elif has_magic(name) and not _check_path(Path.exists, name):
            yield from _in_pattern(name, on_message)
        else:
            yield _file(Path(name))


def example_inputs() -> Iterator[ImageInput]:
    """Yield photographs of the package. Both ImageNet and CIFAR-10 have dogs and cats."""
    photographs = example_photographs()
    for name in ("dog.jpg", "cat.jpg", "coffee.jpg"):
        yield ImageInput(f"{name} (example)", partial(bytes, photographs[name]))


def _in_folder(name: str, on_message: Callable[[str], None]) -> Iterator[ImageInput]:
    files = (path for path in Path(name).rglob("*") if _check_path(Path.is_file, path))
    images, skipped = select_images(files, name)
    if skipped:
        on_message(describe_skipped(skipped, name))
    yield from map(_file, images)
    if not images:
        yield _missing(name, f"the folder contains no images ({describe_suffixes()})")


def _in_pattern(pattern: str, on_message: Callable[[str], None]) -> Iterator[ImageInput]:
    names = sorted(iglob(pattern, recursive=True))  # noqa: PTH207  # Path.glob rejects absolute patterns
    for name in names:
        if not _check_path(Path.is_dir, name):
            yield _file(Path(name))
        elif "**" not in pattern:  # a recursive pattern also matches the files in the folder
            yield from _in_folder(name, on_message)
    if not names:
        yield _missing(pattern, "no file matches this pattern")


def _check_path(predicate: Callable[[Path], bool], path: str | Path) -> bool:
    """Return the predicate of a path, or False without the permission to look; reading it reports that."""
    try:
        return predicate(Path(path))
    except OSError:
        return False


def _file(path: Path) -> ImageInput:
    return ImageInput(str(path), partial(_read, path))


def _missing(name: str, reason: str) -> ImageInput:
    def read() -> bytes:
        raise InputError(reason)

    return ImageInput(name, read)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return _limited(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise InputError(f"cannot read the file: {error.strerror}") from error
    except ValueError as error:  # a null byte in the name
        raise InputError(f"cannot read the file: {error}") from error


def _fetch(url: str) -> bytes:
    request = Request(url, headers={"User-Agent": f"resnet-service/{__version__}"})  # noqa: S310
    try:
        with urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310
            return _limited(response.read(MAX_BYTES + 1))
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, HTTPError):
            error.close()  # the error is also the response and holds its connection
        raise InputError(f"cannot fetch the URL: {error}") from error


def _limited(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise PayloadTooLarge(f"the image has more than {MAX_BYTES:,} bytes")
    return data
