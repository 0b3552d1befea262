"""The columns of the prediction log, and the rows of predictions."""

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import pyarrow as pa

from resnet_service.images import format_name
from resnet_service.images.jpeg_header import read_header

SCHEMA: Final = pa.schema(
    {
        "time": pa.timestamp("us", "UTC"),
        "request_id": pa.string(),
        "key": pa.string(),
        "model": pa.string(),
        "version": pa.string(),
        "class_id": pa.int32(),
        "label": pa.string(),
        "probability": pa.float32(),
        "entropy": pa.float32(),
        "top_k": pa.list_(
            pa.struct({"class_id": pa.int32(), "label": pa.string(), "probability": pa.float32()})
        ),
        "format": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "bytes": pa.int64(),
        "sha256": pa.string(),
        "image": pa.binary(),
    }
)
"""One row per image.

`key` is the name of the API key, null without one. `entropy` is that of `TopKResult`. `top_k` has the classes
of the response, at most `MAX_CLASSES`, of which the first is also in columns of its own. `width` and `height`
are those of the stored pixels of a plain JPEG, null for other images. `bytes` and `sha256` are those of the
upload, which is in `image` if the log has images, else null.
"""

TRUE_CLASS: Final = "true_class"
"""The column that a person adds: the name of the right class, or its index."""
MAX_CLASSES: Final = 10

_BATCH_ROWS: Final = 64
_BATCH_BYTES: Final = 1_000_000
"""Rows and bytes of images that are converted in one call, which holds the GIL."""


class LoggedPrediction(NamedTuple):
    """One classified image: when, for which request, by which model, its classes, and the upload.

    The best classes come first, with their probabilities and labels. `entropy` is that of `TopKResult`, and
    `seconds` are since 1970.
    """

    seconds: float
    request_id: str
    key: str | None
    model: str
    version: str
    class_ids: Sequence[int]
    probabilities: Sequence[float]
    entropy: float
    labels: Sequence[str]
    data: bytes | bytearray


def to_batches(predictions: Sequence[LoggedPrediction], *, with_images: bool) -> Iterator[pa.RecordBatch]:
    """Yield the rows of predictions, in their order; `image` is null unless `with_images` is set."""
    waiting: list[LoggedPrediction] = []
    size = 0
    for prediction in predictions:
        waiting.append(prediction)
        size += len(prediction.data) * with_images
        if len(waiting) == _BATCH_ROWS or size >= _BATCH_BYTES:
            yield _to_batch(waiting, with_images)
            waiting, size = [], 0
    if waiting:
        yield _to_batch(waiting, with_images)


def _to_batch(predictions: Sequence[LoggedPrediction], with_images: bool) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([_row(row, with_images) for row in predictions], SCHEMA)


def _row(prediction: LoggedPrediction, with_image: bool) -> dict[str, object]:
    classes = [
        # JSON can have half of a surrogate pair in a label, which UTF-8 cannot.
        {"class_id": index, "label": label.encode(errors="replace").decode(), "probability": probability}
        for index, label, probability in zip(
            prediction.class_ids, prediction.labels, prediction.probabilities, strict=True
        )
    ]
    header = read_header(prediction.data)
    return {
        "time": datetime.fromtimestamp(prediction.seconds, UTC),
        "request_id": prediction.request_id,
        "key": prediction.key,
        "model": prediction.model,
        "version": prediction.version,
        **classes[0],
        "entropy": prediction.entropy,
        "top_k": classes,
        "format": format_name(prediction.data),
        "width": header and header.width,
        "height": header and header.height,
        "bytes": len(prediction.data),
        "sha256": hashlib.sha256(prediction.data).hexdigest(),
        "image": prediction.data if with_image else None,
    }
