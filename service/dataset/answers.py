"""What was answered, as a folder of Parquet files to which whole files are added and nothing else."""

from pathlib import Path
from typing import Final
from uuid import uuid4

import pyarrow as pa
import pyarrow.dataset as arrow_dataset
from pyarrow import parquet
from pyarrow.fs import FileSelector, FileType

from service.dataset.storage import Place, reachable
from service.errors import StorageUnavailable
from service.files import replacing
from service.models import Model

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
"""A row for each picture. Without an answer its classes are null, with one its `error`."""

_WEIGHTS: Final = b"resnet-service.weights"
"""In each file's metadata: where the model's weights came from."""


class Answers:
    """The folder that a data set's rows go into; each `add` is one more file in it, whole or not at all."""

    def __init__(self, place: Place, model: Model) -> None:
        self._place = place
        self._model = model
        self._run = uuid4().hex[:8]  # so that no other run's files are written over
        self._parts = 0

    def held(self) -> set[str]:
        """Return the paths of the pictures that have their row already.

        Raises StorageUnavailable where the folder holds something else, or answers of another model or of
        other weights.
        """
        files = self._files()
        if not files:
            return set()
        with reachable(str(self._place)):
            kept = arrow_dataset.dataset(files, filesystem=self._place.filesystem, format="parquet")
            if not {"path", "model"} <= set(kept.schema.names):
                raise StorageUnavailable(f"{self._place} holds Parquet files of something else")
            table = kept.to_table(columns=["path", "model"])
        others = set(table.column("model").unique().to_pylist()) - {self._model.name}
        if others:
            names = ", ".join(sorted(others))
            raise StorageUnavailable(f"{self._place} holds answers of {names}, not of {self._model.name}")
        weights = (kept.schema.metadata or {}).get(_WEIGHTS, b"unknown").decode()
        if weights != self._model.source:
            raise StorageUnavailable(f"{self._place} holds answers with other weights: {weights}")
        return set(table.column("path").to_pylist())

    def check(self, *, resume: bool) -> None:
        """Raise StorageUnavailable where the folder is none, or holds answers that are not to be resumed."""
        with reachable(str(self._place)):
            kind = self._place.filesystem.get_file_info(self._place.path).type
        if kind == FileType.File:
            raise StorageUnavailable(f"{self._place} is a file; the answers need a folder")
        if not resume and self._files():
            raise StorageUnavailable(
                f"{self._place} holds answers already: --resume goes on with them, or name another folder"
            )

    def add(self, rows: pa.Table) -> None:
        """Write rows as one more file; raises StorageUnavailable."""
        rows = rows.replace_schema_metadata({_WEIGHTS: self._model.source})
        name = f"{self._place.path}/part-{self._run}-{self._parts:05}.parquet"
        with reachable(self._place.name_of(name)):
            if self._place.is_local:
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                with replacing(Path(name)) as temporary:
                    parquet.write_table(rows, temporary)
            else:
                # Whole before the stream is opened: whatever ends its block, what it has becomes the object.
                whole = pa.BufferOutputStream()
                parquet.write_table(rows, whole)
                with self._place.filesystem.open_output_stream(name) as stream:
                    stream.write(whole.getvalue())
        self._parts += 1

    def _files(self) -> list[str]:
        selector = FileSelector(self._place.path, allow_not_found=True)
        with reachable(str(self._place)):
            entries = self._place.filesystem.get_file_info(selector)
        return [
            entry.path
            for entry in entries
            if entry.type == FileType.File and entry.base_name.endswith(".parquet")
        ]
