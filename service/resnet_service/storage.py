"""Local folders and object stores through PyArrow's file systems: s3://, gs://, hdfs:// and plain paths.

With `fsspec+` before it, a URI has one of fsspec's protocols, such as fsspec+abfs://. Needs the extra
`parquet`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import has_magic
from itertools import takewhile
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import ArrowException, parquet
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from resnet_service.errors import StorageError, first_line
from resnet_service.files import atomic_write


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

    def files(self) -> list[FileInfo]:
        """Return the files of this folder, without those of its subfolders; none if it does not exist.

        Raises StorageError.
        """
        with translate_storage_errors(str(self)):
            entries = self.filesystem.get_file_info(FileSelector(self.path, allow_not_found=True))
        return [entry for entry in entries if entry.type == FileType.File]

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
    # Of fsspec: ImportError for a package that a protocol needs, TypeError and ValueError for its options.
    except (OSError, ArrowException, ImportError, TypeError, ValueError) as error:
        reason = first_line(error).replace(name, "<hidden>")  # the URI may contain a password
        raise StorageError(f"a URI with {scheme} cannot be used: {reason}") from error
    return Location(filesystem, path.rstrip("/"), scheme)


def write_parquet(table: pa.Table, folder: Location, name: str) -> int:
    """Write a table as a file of a folder, which is created, and return its size in bytes.

    The file appears completely or not at all; one with the same name is replaced. Raises StorageError.
    """
    path = f"{folder.path}/{name}"
    with translate_storage_errors(folder.name_of(path)):
        if folder.is_local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(Path(path)) as temporary:
                parquet.write_table(table, temporary)
                return temporary.stat().st_size
        # Encoded before the stream is opened: however its block ends, its content becomes the object.
        buffer = pa.BufferOutputStream()
        parquet.write_table(table, buffer)
        content = buffer.getvalue()
        with folder.filesystem.open_output_stream(path) as stream:
            stream.write(content)
        return len(content)


@contextmanager
def translate_storage_errors(name: str) -> Iterator[None]:
    """Raise StorageError for the errors of PyArrow's file systems; `name` says what is accessed."""
    try:
        yield
    except (OSError, ArrowException, UnicodeError) as error:  # UnicodeError: from a file name
        raise StorageError(f"{name} cannot be used: {first_line(error)}") from error
