"""What was answered, as a folder of Parquet files to which whole files are added and nothing else."""

from pathlib import Path
from typing import Final
from uuid import uuid4

import pyarrow as pa
import pyarrow.dataset as arrow_dataset
from pyarrow import parquet
from pyarrow.fs import FileSelector, FileType

from resnet_service.batch_inference.storage import Location, translate_storage_errors
from resnet_service.errors import StorageError
from resnet_service.files import atomic_write
from resnet_service.models import Model

SCHEMA: Final = pa.schema(
    {
        "path": pa.string(),
        "class_id": pa.int32(),
        "label": pa.string(),
        "probability": pa.float32(),
        "top_k": pa.list_(
            pa.struct({"class_id": pa.int32(), "label": pa.string(), "probability": pa.float32()})
        ),
        "model": pa.string(),
        "error": pa.string(),
    }
)
"""A row for each image. Without an answer its classes are null, with one its `error`."""

_WEIGHTS: Final = b"resnet-service.weights"
"""In each file's metadata: where the model's weights came from."""


class ResultsDirectory:
    """The folder that a data set's rows go into; each `add` is one more file in it, whole or not at all."""

    def __init__(self, location: Location, model: Model) -> None:
        self._location = location
        self._model = model
        self._run = uuid4().hex[:8]  # so that no other run's files are written over
        self._parts = 0

    def completed_paths(self) -> set[str]:
        """Return the paths of the images that have their row already.

        Raises StorageError where the folder holds something else, or answers of another model or of
        other weights.
        """
        files = self._files()
        if not files:
            return set()
        with translate_storage_errors(str(self._location)):
            kept = arrow_dataset.dataset(files, filesystem=self._location.filesystem, format="parquet")
            if not {"path", "model"} <= set(kept.schema.names):
                raise StorageError(f"{self._location} holds Parquet files of something else")
            table = kept.to_table(columns=["path", "model"])
        others = set(table.column("model").unique().to_pylist()) - {self._model.name}
        if others:
            names = ", ".join(sorted(others))
            raise StorageError(f"{self._location} holds answers of {names}, not of {self._model.name}")
        weights = (kept.schema.metadata or {}).get(_WEIGHTS, b"unknown").decode()
        if weights != self._model.source:
            raise StorageError(f"{self._location} holds answers with other weights: {weights}")
        return set(table.column("path").to_pylist())

    def validate(self, *, resume: bool) -> None:
        """Raise StorageError where the folder is none, or holds answers that are not to be resumed."""
        with translate_storage_errors(str(self._location)):
            kind = self._location.filesystem.get_file_info(self._location.path).type
        if kind == FileType.File:
            raise StorageError(f"{self._location} is a file; the answers need a folder")
        if not resume and self._files():
            raise StorageError(
                f"{self._location} holds answers already: --resume goes on with them, or name another folder"
            )

    def add(self, rows: pa.Table) -> None:
        """Write rows as one more file; raises StorageError."""
        rows = rows.replace_schema_metadata({_WEIGHTS: self._model.source})
        name = f"{self._location.path}/part-{self._run}-{self._parts:05}.parquet"
        with translate_storage_errors(self._location.name_of(name)):
            if self._location.is_local:
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(Path(name)) as temporary:
                    parquet.write_table(rows, temporary)
            else:
                # Whole before the stream is opened: whatever ends its block, what it has becomes the object.
                whole = pa.BufferOutputStream()
                parquet.write_table(rows, whole)
                with self._location.filesystem.open_output_stream(name) as stream:
                    stream.write(whole.getvalue())
        self._parts += 1

    def _files(self) -> list[str]:
        selector = FileSelector(self._location.path, allow_not_found=True)
        with translate_storage_errors(str(self._location)):
            entries = self._location.filesystem.get_file_info(selector)
        return [
            entry.path
            for entry in entries
            if entry.type == FileType.File and entry.base_name.endswith(".parquet")
        ]
