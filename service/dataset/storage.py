"""Folders here and in object stores, through PyArrow's file systems: s3://, gs://, hdfs://, plain paths."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path, PurePosixPath

from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from service.errors import InvalidImage, PayloadTooLarge, StorageUnavailable
from service.offline import MAX_BYTES, SUFFIXES


@dataclass(frozen=True)
class Place:
    """A file, a folder or a pattern: where it is, and by what people call it, without any password.

    `scheme` is what stands before a path to make it a URI again; "" for a path here.
    """

    filesystem: FileSystem
    path: str
    scheme: str = ""

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return isinstance(self.filesystem, LocalFileSystem)

    def name_of(self, path: str) -> str:
        """Name a path of this file system."""
        return f"{self.scheme}{path}"

    def __str__(self) -> str:
        """Name the place itself."""
        return self.name_of(self.path)


def find_place(name: str) -> Place:
    """Say where a path or a URI is; raises StorageUnavailable for one that nobody here can open."""
    if "://" not in name:
        return Place(LocalFileSystem(), str(Path(name).absolute()))
    scheme = f"{name.split('://', 1)[0]}://"
    if scheme == "file://":
        return Place(LocalFileSystem(), str(Path(name.removeprefix(scheme)).absolute()))
    try:
        filesystem, path = FileSystem.from_uri(name)
    except (OSError, ArrowException) as error:
        reason = _first_line(error).replace(name, "it")  # in which there may be a password
        raise StorageUnavailable(f"a URI with {scheme} cannot be used: {reason}") from error
    return Place(filesystem, path, scheme)


def pictures(place: Place) -> list[str]:
    """List the paths of all pictures in a folder, of those that match a pattern, or of one file, sorted.

    Raises StorageUnavailable where there are none, and where nobody may look.
    """
    with reachable(str(place)):
        there = place.filesystem.get_file_info(place.path).type != FileType.NotFound
        if has_magic(place.path) and not there:
            found = ArrowFSWrapper(place.filesystem).glob(place.path)
            paths = [path for path in found if _is_picture(path)]
        else:
            paths = list(_below(place))
    if not paths:
        raise StorageUnavailable(f"{place} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    return sorted(paths)


def _below(place: Place) -> Iterator[str]:
    kind = place.filesystem.get_file_info(place.path).type
    if kind == FileType.NotFound:
        raise StorageUnavailable(f"there is no {place}")
    if kind == FileType.File:
        yield place.path
        return
    for entry in place.filesystem.get_file_info(FileSelector(place.path, recursive=True)):
        if entry.type == FileType.File and _is_picture(entry.path):
            yield entry.path


def _is_picture(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in SUFFIXES


def read(place: Place, path: str) -> bytes:
    """Return the bytes of a picture of `place`.

    Raises InvalidImage for one that is gone or that nobody may read, PayloadTooLarge, and OSError where it is
    not the picture's fault: a later run may well read it.
    """
    try:
        with place.filesystem.open_input_stream(path) as file:
            data: bytes = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, PermissionError) as error:
        if place.is_local and not Path(path).parent.is_dir():
            raise OSError(f"{Path(path).parent} is not on every machine of the cluster") from error
        raise InvalidImage(f"it cannot be read: {_first_line(error)}") from error
    if len(data) > MAX_BYTES:
        raise PayloadTooLarge(f"it has more than {MAX_BYTES:,} bytes")
    return data


@contextmanager
def reachable(name: str) -> Iterator[None]:
    """Turn what a file system says no with into StorageUnavailable."""
    try:
        yield
    except (OSError, ArrowException, UnicodeError) as error:  # UnicodeError: of a file's name
        raise StorageUnavailable(f"{name} cannot be used: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
