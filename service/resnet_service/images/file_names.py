"""Which files of a folder are images, by their names: one rule for all commands that read folders."""

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path, PurePath
from typing import Final, TypeVar

SUFFIXES: Final = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heics", ".heif", ".heifs", ".hif"),
}
"""The file name suffixes of each supported format, in lower case. A file that is named itself may have any.

HEIF needs an extra; without it, these files are images with an error that names the extra.
"""

NOT_AN_IMAGE: Final = "not the name of an image"

_ALL_SUFFIXES: Final = frozenset(chain.from_iterable(SUFFIXES.values()))
_MAX_NAMES: Final = 5

_Path = TypeVar("_Path", str, Path)


def select_images(paths: Iterable[_Path], root: PurePath | str) -> tuple[list[_Path], list[_Path]]:
    """Return the sorted files below `root` that are images, and the sorted other files.

    Hidden files, files in hidden folders and Thumbs.db belong to the system and are in neither list.
    """
    images: list[_Path] = []
    others: list[_Path] = []
    for path in sorted(paths):
        name = PurePath(path)
        if not any(map(is_system_name, name.relative_to(root).parts)):
            (images if name.suffix.lower() in _ALL_SUFFIXES else others).append(path)
    return images, others


def is_system_name(name: str) -> bool:
    """Return whether a file or a folder belongs to the system: .DS_Store, .ipynb_checkpoints, Thumbs.db."""
    return name.startswith(".") or name == "Thumbs.db"


def describe_skipped(skipped: Sequence[str | Path], root: PurePath | str) -> str:
    """Return one line with the number of files below `root` that are not images, and some of their names."""
    names = [str(PurePath(path).relative_to(root)) for path in skipped[:_MAX_NAMES]]
    more = ", ..." if len(skipped) > _MAX_NAMES else ""
    count = f"{len(skipped):,} file{'' if len(skipped) == 1 else 's'}"
    return f"{root}: skipped {count} without the name of an image: {', '.join(names)}{more}"


def describe_suffixes() -> str:
    """Return the suffixes of images as a list for messages."""
    return ", ".join(sorted(_ALL_SUFFIXES))
