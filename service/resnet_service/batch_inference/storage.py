"""Local folders and object stores through PyArrow's file systems: s3://, gs://, hdfs:// and plain paths."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import has_magic
from itertools import takewhile
from pathlib import Path, PurePosixPath

from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from resnet_service.errors import InputError, PayloadTooLarge, StorageError, first_line
from resnet_service.images.file_names import describe_suffixes, select_images
from resnet_service.inference import MAX_BYTES


@dataclass(frozen=True)
class Location:
    """A file, a folder or a pattern in a file system.

    `scheme` turns a path of the file system into a URI without credentials; it is "" for a local path.
    """

    filesystem: FileSystem
    path: str
    scheme: str = ""

    @property
    def is_local(self) -> bool:
        """Whether the file system is the one of this machine."""
        return isinstance(self.filesystem, LocalFileSystem)

    @property
    def root(self) -> str:
        """The path, or of a pattern the folder above its first wildcard."""
        parts = PurePosixPath(self.path).parts
        return str(PurePosixPath(*takewhile(lambda part: not has_magic(part), parts)))

    def name_of(self, path: str) -> str:
        """Return the public name of a path in this file system, without credentials."""
        return f"{self.scheme}{path}"

    def __str__(self) -> str:
        """Return the public name of the location."""
        return self.name_of(self.path)


def resolve_location(name: str) -> Location:
    """Return the location of a path or a URI; raises StorageError for an unsupported or invalid URI."""
    if "://" not in name:
        return Location(LocalFileSystem(), str(Path(name).absolute()))
    scheme = f"{name.split('://', 1)[0]}://"
    if scheme == "file://":
        return Location(LocalFileSystem(), str(Path(name.removeprefix(scheme)).absolute()))
    try:
        filesystem, path = FileSystem.from_uri(name)
    except (OSError, ArrowException) as error:
        reason = first_line(error).replace(name, "<hidden>")  # the URI may contain a password
        raise StorageError(f"a URI with {scheme} cannot be used: {reason}") from error
    return Location(filesystem, path, scheme)


def list_images(location: Location) -> tuple[list[str], list[str]]:
    """Return the sorted paths of all images in a folder or matching a pattern, and of the other files there.

    A location that is a file is an image, whatever its name. Raises StorageError if there are no images or
    the location cannot be read.
    """
    with translate_storage_errors(str(location)):
        exists = location.filesystem.get_file_info(location.path).type != FileType.NotFound
        if has_magic(location.path) and not exists:
            matches = ArrowFSWrapper(location.filesystem).glob(location.path, detail=True)
            files = (path for path, details in matches.items() if details["type"] == "file")
            images, skipped = select_images(files, location.root)
        else:
            images, skipped = _list_folder(location)
    if not images:
        raise StorageError(f"{location} contains no images ({describe_suffixes()})")
    return images, skipped


def _list_folder(location: Location) -> tuple[list[str], list[str]]:
    kind = location.filesystem.get_file_info(location.path).type
    if kind == FileType.NotFound:
        raise StorageError(f"{location} does not exist")
    if kind == FileType.File:
        return [location.path], []
    entries = location.filesystem.get_file_info(FileSelector(location.path, recursive=True))
    return select_images((entry.path for entry in entries if entry.type == FileType.File), location.root)


def read_image(location: Location, path: str) -> bytes:
    """Return the content of an image file of `location`.

    Raises InputError if the file is missing or not readable, PayloadTooLarge above MAX_BYTES, and OSError if
    the cause is the storage and not the file, so that a later run may be able to read it.
    """
    try:
        with location.filesystem.open_input_stream(path) as file:
            data: bytes = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, PermissionError) as error:
        if location.is_local and not Path(path).parent.is_dir():
            raise OSError(f"{Path(path).parent} is missing on a machine of the cluster") from error
        raise InputError(f"cannot be read: {first_line(error)}") from error
    if len(data) > MAX_BYTES:
        raise PayloadTooLarge(f"larger than {MAX_BYTES:,} bytes")
    return data


@contextmanager
def translate_storage_errors(name: str) -> Iterator[None]:
    """Raise StorageError for the errors of PyArrow's file systems; `name` says what is accessed."""
    try:
        yield
    except (OSError, ArrowException, UnicodeError) as error:  # UnicodeError: from a file name
        raise StorageError(f"{name} cannot be used: {first_line(error)}") from error
