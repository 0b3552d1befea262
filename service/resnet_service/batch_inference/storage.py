"""Folders here and in object stores, through PyArrow's file systems: s3://, gs://, hdfs://, plain paths."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path, PurePosixPath

from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from resnet_service.errors import InvalidImageError, PayloadTooLarge, StorageError
from resnet_service.inference import MAX_BYTES, SUFFIXES


@dataclass(frozen=True)
class Location:
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


def resolve_location(name: str) -> Location:
    """Say where a path or a URI is; raises StorageError for one that nobody here can open."""
    if "://" not in name:
        return Location(LocalFileSystem(), str(Path(name).absolute()))
    scheme = f"{name.split('://', 1)[0]}://"
    if scheme == "file://":
        return Location(LocalFileSystem(), str(Path(name.removeprefix(scheme)).absolute()))
    try:
        filesystem, path = FileSystem.from_uri(name)
    except (OSError, ArrowException) as error:
        reason = _first_line(error).replace(name, "it")  # in which there may be a password
        raise StorageError(f"a URI with {scheme} cannot be used: {reason}") from error
    return Location(filesystem, path, scheme)


def list_images(location: Location) -> list[str]:
    """List the paths of all images in a folder, of those that match a pattern, or of one file, sorted.

    Raises StorageError where there are none, and where nobody may look.
    """
    with translate_storage_errors(str(location)):
        there = location.filesystem.get_file_info(location.path).type != FileType.NotFound
        if has_magic(location.path) and not there:
            found = ArrowFSWrapper(location.filesystem).glob(location.path)
            paths = [path for path in found if _is_image(path)]
        else:
            paths = list(_below(location))
    if not paths:
        raise StorageError(f"{location} holds no images ({', '.join(sorted(SUFFIXES))})")
    return sorted(paths)


def _below(location: Location) -> Iterator[str]:
    kind = location.filesystem.get_file_info(location.path).type
    if kind == FileType.NotFound:
        raise StorageError(f"there is no {location}")
    if kind == FileType.File:
        yield location.path
        return
    for entry in location.filesystem.get_file_info(FileSelector(location.path, recursive=True)):
        if entry.type == FileType.File and _is_image(entry.path):
            yield entry.path


def _is_image(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in SUFFIXES


def read(location: Location, path: str) -> bytes:
    """Return the bytes of an image of `place`.

    Raises InvalidImageError for one that is gone or that nobody may read, PayloadTooLarge, and OSError where it is
    not the image's fault: a later run may well read it.
    """
    try:
        with location.filesystem.open_input_stream(path) as file:
            data: bytes = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, PermissionError) as error:
        if location.is_local and not Path(path).parent.is_dir():
            raise OSError(f"{Path(path).parent} is not on every machine of the cluster") from error
        raise InvalidImageError(f"it cannot be read: {_first_line(error)}") from error
    if len(data) > MAX_BYTES:
        raise PayloadTooLarge(f"it has more than {MAX_BYTES:,} bytes")
    return data


@contextmanager
def translate_storage_errors(name: str) -> Iterator[None]:
    """Turn what a file system says no with into StorageError."""
    try:
        yield
    except (OSError, ArrowException, UnicodeError) as error:  # UnicodeError: of a file's name
        raise StorageError(f"{name} cannot be used: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
