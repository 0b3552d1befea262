"""Read images from a prediction log to which a column with their right class was added."""

from typing import Final, NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import compute, parquet

from resnet_service.errors import StorageError
from resnet_service.machine import available_memory
from resnet_service.prediction_log.rows import TRUE_CLASS
from resnet_service.storage import Location, resolve_location, translate_storage_errors

_SUFFIX: Final = ".parquet"


class LoggedImage(NamedTuple):
    """An image of the log, which is read like a file."""

    name: str
    data: bytes

    def read_bytes(self) -> bytes:
        """Return the uploaded file."""
        return self.data

    def __str__(self) -> str:
        """Return its name: the file with its row, and the first digits of its SHA-256."""
        return self.name


class LabeledPrediction(NamedTuple):
    """An image and its right class: the name, or the index of the class in the model."""

    image: LoggedImage
    true_class: str | int
    sha256: str


def read_labeled(source: str) -> list[LabeledPrediction]:
    """Return the rows of a prediction log whose column `TRUE_CLASS` is not null, ordered by SHA-256.

    An image that was logged several times is there once. Raises StorageError if the folder cannot be read,
    has no such row, or has one without an image; if an image has two classes; and if the images do not fit
    in half of the free memory.
    """
    if "://" in source and "@" in urlsplit(source).netloc:  # what trains records the name of its data
        raise StorageError("the URI has a password; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
    location = resolve_location(source)
    names = sorted(entry.path for entry in location.files() if entry.base_name.endswith(_SUFFIX))
    if not names:
        raise StorageError(f"{location} contains no Parquet files")
    free = available_memory()
    predictions: dict[str, LabeledPrediction] = {}
    size = 0
    for name in names:
        for prediction in _read_file(location, name):
            known = predictions.setdefault(prediction.sha256, prediction)
            if known is prediction:
                size += len(prediction.image.data)
            elif known.true_class != prediction.true_class:
                raise StorageError(
                    f"{prediction.image} is {prediction.true_class!r}, but {known.image}, the same image, is "
                    f"{known.true_class!r}"
                )
        if free is not None and size > free / 2:
            raise StorageError(f"the labeled images in {location} take more than half of the free memory")
    if not predictions:
        raise StorageError(
            f"{location} has no row with a {TRUE_CLASS}: add this column, with the name of the right class"
        )
    return [predictions[digest] for digest in sorted(predictions)]


def _read_file(location: Location, path: str) -> list[LabeledPrediction]:
    name = location.name_of(path)
    with translate_storage_errors(name), location.filesystem.open_input_file(path) as stream:
        file = parquet.ParquetFile(stream)
        columns = file.schema_arrow.names
        if TRUE_CLASS not in columns:
            return []
        if not {"image", "sha256"} <= set(columns):
            raise StorageError(f"{name} has no columns image and sha256: it is not a prediction log")
        kind = file.schema_arrow.field(TRUE_CLASS).type
        if pa.types.is_dictionary(kind):  # a categorical column of pandas
            kind = kind.value_type
        is_valid = pa.types.is_integer(kind) or pa.types.is_null(kind) or _is_text(kind)
        if not is_valid:
            raise StorageError(f"{TRUE_CLASS} in {name} is {kind}, neither text nor integers")
        labeled: list[LabeledPrediction] = []
        first_row = 0
        for group in range(file.num_row_groups):  # bounds what is decompressed at a time
            table = file.read_row_group(group, columns=["image", "sha256", TRUE_CLASS])
            rows = compute.indices_nonzero(compute.is_valid(table.column(TRUE_CLASS)))
            for row, values in zip(rows.to_pylist(), table.take(rows).to_pylist(), strict=True):
                title = f"{name} row {first_row + row}"
                if values["image"] is None or values["sha256"] is None:
                    raise StorageError(
                        f"{title} has a {TRUE_CLASS} but no image: log with --prediction-log-images"
                    )
                image = LoggedImage(f"{title} ({values['sha256'][:8]})", values["image"])
                labeled.append(LabeledPrediction(image, values[TRUE_CLASS], values["sha256"]))
            first_row += table.num_rows
        return labeled


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
