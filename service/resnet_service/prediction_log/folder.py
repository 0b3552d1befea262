"""The folder of the prediction log: names of its files, and which of them are deleted.

Other files in the folder are never touched. Several processes and hosts may use the same folder.
"""

import itertools
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple
from uuid import uuid4

import pyarrow as pa
from pyarrow.fs import FileInfo

from resnet_service.errors import StorageError
from resnet_service.files import describe_os_error
from resnet_service.metric_labels import LogDeletionReason
from resnet_service.storage import Location, translate_storage_errors, write_parquet

_NAME: Final = re.compile(r"(\.)?predictions-(\d{8}T\d{6})Z-[0-9a-f]{12}-\d+\.parquet(?(1)\.part)")
"""A file of the log, or one that was not finished: written at, of which process, and its number there."""
_TIME: Final = "%Y%m%dT%H%M%S"
_UNFINISHED_S: Final = 3600.0
"""Age at which an unfinished file is one of a process that was killed."""


class _LogFile(NamedTuple):
    written_at: float
    path: str
    size: int
    is_unfinished: bool


class LogFolder:
    """The files of a prediction log, together at most `max_bytes`, none older than `max_age_s`.

    folder = LogFolder(resolve_location("predictions"), 1_000_000_000, 30 * 86_400)
    folder.write(table)
    """

    def __init__(
        self, location: Location, max_bytes: int, max_age_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock` returns the seconds since 1970."""
        self.max_bytes = max_bytes
        self._location = location
        self._max_age_s = max_age_s
        self._clock = clock
        self._process = uuid4().hex[:12]
        self._numbers = itertools.count()

    def __str__(self) -> str:
        """Return its name, without credentials."""
        return str(self._location)

    def check(self) -> None:
        """Create the folder, write a file and delete it again. Raises StorageError."""
        filesystem, path = self._location.filesystem, self._location.path
        probe = f"{path}/.predictions-check-{self._process}"
        try:
            self._create()
            with filesystem.open_output_stream(probe) as stream:
                stream.write(b"x")
            filesystem.delete_file(probe)
        # The file systems of fsspec raise errors without a common base class.
        except (OSError, pa.ArrowException, ValueError) as error:
            reason = describe_os_error(error)
            raise StorageError(f"the prediction log cannot be written to {self}: {reason}") from error

    def write(self, table: pa.Table) -> int:
        """Add a file with these rows, and return its bytes. Raises StorageError."""
        with translate_storage_errors(str(self)):
            self._create()  # it can have been deleted
        written_at = datetime.fromtimestamp(self._clock(), UTC).strftime(_TIME)
        name = f"predictions-{written_at}Z-{self._process}-{next(self._numbers)}.parquet"
        return write_parquet(table, self._location, name)

    def _create(self) -> None:
        """Create a local folder that only this user can read: it can have the images of clients."""
        if self._location.is_local:
            Path(self._location.path).mkdir(mode=0o700, parents=True, exist_ok=True)

    def delete_old(self, room: int, on_delete: Callable[[LogDeletionReason], None]) -> int:
        """Delete files that are too old, then the oldest until `room` more bytes fit; return the bytes left.

        `on_delete` is called for each file. Another process may delete the same files. Raises StorageError,
        also if `room` is more than the maximum.
        """
        if room > self.max_bytes:
            raise StorageError(f"{room:,} bytes are more than the maximum size of the prediction log")
        now = self._clock()
        files = sorted(filter(None, map(_parse, self._location.files())))
        kept: list[_LogFile] = []
        for file in files:
            max_age_s = min(self._max_age_s, _UNFINISHED_S) if file.is_unfinished else self._max_age_s
            if now - file.written_at > max_age_s:
                self._delete(file, "age", on_delete)
            else:
                kept.append(file)
        size = sum(file.size for file in kept)
        for file in kept:
            if size + room <= self.max_bytes:
                break
            self._delete(file, "size", on_delete)
            size -= file.size
        return size

    def _delete(
        self, file: _LogFile, reason: LogDeletionReason, on_delete: Callable[[LogDeletionReason], None]
    ) -> None:
        with translate_storage_errors(self._location.name_of(file.path)):
            try:
                self._location.filesystem.delete_file(file.path)
            except FileNotFoundError:
                return  # another process was first
        on_delete(reason)


def _parse(info: FileInfo) -> _LogFile | None:
    match = _NAME.fullmatch(info.base_name)
    if match is None:
        return None
    try:
        written_at = datetime.strptime(match[2], _TIME).replace(tzinfo=UTC).timestamp()
    except ValueError:  # such as month 13: not a name of the log
        return None
    return _LogFile(written_at, info.path, info.size or 0, match[1] is not None)
