"""The results of a batch run: a folder of Parquet files; a run only adds complete files to it."""

from typing import Final
from uuid import uuid4

import pyarrow as pa
import pyarrow.dataset as arrow_dataset
from pyarrow.fs import FileType

from resnet_service.errors import StorageError
from resnet_service.models import Model
from resnet_service.storage import Location, translate_storage_errors, write_parquet

SCHEMA: Final = pa.schema(
    {
        "path": pa.string(),
        "true_class": pa.string(),
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
"""One row per image: either its best classes, or `error`, with the columns of the classes null.

`true_class` is the name of the image's folder if that is the name of a class, else null.
"""

EMBEDDING_COLUMN: Final = "embedding"

_WEIGHTS_KEY: Final = b"resnet-service.weights"
"""In the metadata of each file: the source of the model's weights."""


def result_schema(embedding_size: int | None) -> pa.Schema:
    """Return `SCHEMA`, and a column of `embedding_size` floats if it is set; null if there is an error."""
    if embedding_size is None:
        return SCHEMA
    return SCHEMA.append(pa.field(EMBEDDING_COLUMN, pa.list_(pa.float32(), embedding_size)))


class ResultsDirectory:
    """The folder with the rows of a data set, local or in an object store.

    Each `add` writes one more file, completely or not at all; existing files are never changed.
    """

    def __init__(self, location: Location, model: Model, *, with_embeddings: bool = False) -> None:
        self._location = location
        self._model = model
        self._with_embeddings = with_embeddings
        self._run_id = uuid4().hex[:8]  # keeps runs from overwriting each other's files
        self._parts = 0

    def validate(self, *, resume: bool) -> None:
        """Raise StorageError if the location is a file, or holds results and `resume` is false."""
        with translate_storage_errors(str(self._location)):
            kind = self._location.filesystem.get_file_info(self._location.path).type
        if kind == FileType.File:
            raise StorageError(f"{self._location} is a file; the results need a folder")
        files = self._files()
        self._parts = len(files)
        if not resume and files:
            raise StorageError(
                f"{self._location} already holds results: use --resume to continue, or another folder"
            )

    def completed_paths(self) -> set[str]:
        """Return the paths of the images that have a row.

        Raises StorageError if the folder holds other Parquet files, or results of another model, of other
        weights, or with embeddings if these are without, or the other way around.
        """
        files = self._files()
        if not files:
            return set()
        with translate_storage_errors(str(self._location)):
            results = arrow_dataset.dataset(files, filesystem=self._location.filesystem, format="parquet")
            if not {"path", "model"} <= set(results.schema.names):
                raise StorageError(f"{self._location} holds Parquet files that are not batch results")
            if (EMBEDDING_COLUMN in results.schema.names) is not self._with_embeddings:
                kind = "without" if self._with_embeddings else "with"
                raise StorageError(
                    f"{self._location} holds results {kind} embeddings: resume {kind} --embeddings"
                )
            table = results.to_table(columns=["path", "model"])
        if others := set(table.column("model").unique().to_pylist()) - {self._model.name}:
            names = ", ".join(sorted(others))
            raise StorageError(f"{self._location} holds results of {names}, not of {self._model.name}")
        weights = (results.schema.metadata or {}).get(_WEIGHTS_KEY, b"unknown").decode()
        if weights != self._model.source:
            raise StorageError(f"{self._location} holds results of other weights: {weights}")
        return set(table.column("path").to_pylist())

    def add(self, rows: pa.Table) -> None:
        """Write rows as one more file; raises StorageError."""
        rows = rows.replace_schema_metadata({_WEIGHTS_KEY: self._model.source})
        # The number comes first, so that the files in the order of their names have sorted rows.
        write_parquet(rows, self._location, f"part-{self._parts:05}-{self._run_id}.parquet")
        self._parts += 1

    def _files(self) -> list[str]:
        return [entry.path for entry in self._location.files() if entry.base_name.endswith(".parquet")]
