"""Find and read the images of a data set, in a local folder or an object store."""

from glob import has_magic
from pathlib import Path

from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow.fs import FileSelector, FileType

from resnet_service.errors import InputError, PayloadTooLarge, StorageError, first_line
from resnet_service.images.file_names import describe_suffixes, select_images
from resnet_service.inference import MAX_BYTES
from resnet_service.storage import Location, translate_storage_errors


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
