"""Run a model over a data set with Ray Data: tasks read and decode images, actors hold the model.

Only crops, 150 KB each at 224x224, move between processes; the full image stays in the task that reads it.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data

from resnet_service import errors
from resnet_service.batch_inference.results import EMBEDDING_COLUMN, SCHEMA, result_schema
from resnet_service.batch_inference.storage import read_image
from resnet_service.devices import Precision, choose_device
from resnet_service.errors import ClusterError, ServiceError, StorageError
from resnet_service.images import Preprocessing
from resnet_service.inference import (
    ClassificationResult,
    Classifier,
    DecodedImage,
    ImageInput,
    decode_all,
)
from resnet_service.machine import available_cpus
from resnet_service.models import Model
from resnet_service.models.class_folders import class_folder
from resnet_service.runtimes.selection import RuntimeName, create_runtimes
from resnet_service.storage import Location

_log: Final = logging.getLogger(__name__)

Batch = dict[str, npt.NDArray[Any]]

_BLOCK_IMAGES: Final = 128
"""The largest number of images that one task decodes: 19 MB of crops at 224x224."""

_ERROR_COLUMNS: Final = ("error_class", "error_message")
_ERROR_FIELDS: Final = [pa.field(name, pa.string()) for name in _ERROR_COLUMNS]
"""A worker returns its ServiceError as a row: of an exception, Ray transmits only the traceback's text."""

_READER_THREADS: Final = 16
"""Threads per task for an object store, which spend their time waiting."""


@dataclass(frozen=True)
class ExecutionConfig:
    """How the actors run the model.

    Attributes:
        device: auto, cpu, cuda or mps.
        precision: of the runtime.
        runtime: its name, or auto.
        actors: number of processes that hold the model.
        gpus: each actor's share of a GPU: 0.5 puts two actors on each. None is 1 if the cluster has GPUs and
            `device` allows them, else 0.
        batch_size: images in a batch, at most.
        top_k: classes per image.
        with_embeddings: whether the rows have the embeddings.

    """

    device: str = "auto"
    precision: Precision | Literal["auto"] = "auto"
    runtime: RuntimeName = "auto"
    actors: int = 1
    gpus: float | None = None
    batch_size: int = 64
    top_k: int = 5
    with_embeddings: bool = False


def classify_dataset(
    location: Location, paths: Sequence[str], model: Model, config: ExecutionConfig
) -> Iterator[pa.Table]:
    """Yield rows of `results.result_schema` for images of `location`, in the order of `paths`.

    Needs a `ray_cluster`. Ray restarts tasks and actors that die, and each image still has exactly one row.
    Raises what the model's runtime raises, StorageError if images can no longer be reached, and ClusterError
    if the cluster lacks the requested resources.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    actors = min(config.actors, math.ceil(len(paths) / config.batch_size))
    actors_per_node = math.ceil(actors / max(1, sum(node["Alive"] for node in ray.nodes())))
    gpus = _gpus(config)
    # Smaller blocks for few images, so that each core and each actor gets a share.
    cores = int(ray.cluster_resources().get("CPU", 1))
    block = max(1, min(_BLOCK_IMAGES, len(paths) // (4 * max(actors, cores))))
    blocks = [
        pa.table({"path": pa.array(paths[start : start + block], pa.string())})
        for start in range(0, len(paths), block)
    ]
    decode = partial(_decode, location, model.preprocessing)
    # By reference: otherwise the driver would send the weights again for every restart of an actor.
    weights = ray.put(model)
    rows = (
        ray.data.from_arrow(blocks)
        .map_batches(decode, batch_size=None, num_cpus=1)
        .map_batches(
            _Actor,
            fn_constructor_args=(weights, replace(config, gpus=gpus), actors_per_node),
            batch_size=config.batch_size,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=0,  # tasks and actors share the cores: tasks wait for disks, actors for tasks
            num_gpus=gpus,
        )
    )
    try:
        for table in cast(Iterator[pa.Table], rows.iter_batches(batch_size=None, batch_format="pyarrow")):
            columns = (table.column(name).to_pylist() for name in _ERROR_COLUMNS)
            for error_class, message in zip(*columns, strict=True):
                if error_class is not None:
                    raise getattr(errors, error_class)(message)
            # Without its error columns, which come last.
            schema = pa.schema(list(table.schema)[: -len(_ERROR_COLUMNS)])
            yield table.select(schema.names).cast(schema)
    except ray.exceptions.RayError as error:
        raise ClusterError(f"Ray failed: {error}") from error


def _gpus(config: ExecutionConfig) -> float:
    """Return each actor's share of a GPU.

    Raises ClusterError if the cluster has fewer GPUs than requested: Ray would wait for more, silently.
    """
    available: float = ray.cluster_resources().get("GPU", 0)
    if config.gpus is None:
        return 1.0 if available and config.device in ("auto", "cuda") else 0.0
    if config.gpus > available:
        raise ClusterError(f"each actor needs {config.gpus:g} GPUs, but the cluster has {available:g}")
    return config.gpus


def _decode(location: Location, preprocessing: Preprocessing, batch: Batch) -> Batch:
    """Read and decode the images of a batch.

    Input: `path` [N]. Output: `path` [N], `crop` uint8 [N, S, S, 3], `error` [N] ("" if the image could be
    decoded) and `unreachable` [N], the reason if the storage cannot be reached, else "".
    """
    inputs = [ImageInput(path, partial(read_image, location, path)) for path in batch["path"].tolist()]
    threads = 1 if location.is_local else _READER_THREADS
    side = preprocessing.crop
    crops = np.zeros((len(inputs), side, side, 3), np.uint8)
    reasons = [""] * len(inputs)
    unreachable = ""
    try:
        for index, image in enumerate(decode_all(inputs, preprocessing, threads, 2 * threads)):
            reasons[index] = image.error or ""
            if image.crop is not None:
                crops[index] = image.crop
    except OSError as error:
        unreachable = str(error).splitlines()[0]
    return {
        "path": batch["path"],
        "crop": crops,
        "error": np.array(reasons, dtype=object),
        "unreachable": np.array([unreachable] * len(inputs), dtype=object),
    }


class _Actor:
    """Holds the model on its device for the duration of the run."""

    def __init__(
        self, model: "Model | ray.ObjectRef[Model]", config: ExecutionConfig, actors_per_node: int
    ) -> None:
        if isinstance(model, ray.ObjectRef):
            model = ray.get(model)
        self._name, self._labels = model.name, model.labels
        self._classifier: Classifier | None = None
        self._error_row: dict[str, str] = {}
        self._schema = pa.schema([*SCHEMA, *_ERROR_FIELDS])
        try:
            self._classifier, size = _create_classifier(model, config, available_cpus() // actors_per_node)
            self._schema = pa.schema([*result_schema(size), *_ERROR_FIELDS])
        except ServiceError as error:
            self._error_row = _to_error_row(error)

    def __call__(self, batch: Batch) -> pa.Table:
        """Classify the output of `_decode`; returns rows of the results with the columns of errors."""
        if self._classifier is None:
            return pa.Table.from_pylist([self._error_row], self._schema)
        for reason in filter(None, batch["unreachable"]):
            row = _to_error_row(StorageError(f"images can no longer be reached: {reason}"))
            return pa.Table.from_pylist([row], self._schema)
        images = [
            DecodedImage(path, None if error else crop, 0.0, error or None)
            for path, crop, error in zip(batch["path"], batch["crop"], batch["error"], strict=True)
        ]
        try:
            rows = list(map(self._to_row, self._classifier.run_all(images)))
        except ServiceError as error:
            rows = [_to_error_row(error)]
        return pa.Table.from_pylist(rows, self._schema)

    def _to_row(self, result: ClassificationResult) -> dict[str, Any]:
        top_k = [
            {"class_id": one.class_id, "label": one.label, "probability": one.probability}
            for one in result.ranking
        ]
        return {
            "path": result.name,
            "true_class": class_folder(result.name, self._labels),
            "top_k": top_k or None,
            "model": self._name,
            "error": result.error,
            EMBEDDING_COLUMN: result.embedding,
            **(top_k[0] if top_k else {}),
        }


def _to_error_row(error: ServiceError) -> dict[str, str]:
    return dict(zip(_ERROR_COLUMNS, (type(error).__name__, str(error)), strict=True))


def _create_classifier(model: Model, config: ExecutionConfig, threads: int) -> tuple[Classifier, int | None]:
    """Return the classifier, and the length of the embeddings that the rows have; None if they have none."""
    device = choose_device(config.device)
    if config.device == "auto" and device.type == "cuda" and not config.gpus:
        device = choose_device("cpu")  # Ray does not hide a GPU that it has not assigned to this actor
    [runtime] = create_runtimes(
        model,
        [device],
        name=config.runtime,
        precision=config.precision,
        streams_per_device=1,
        threads=max(1, threads),
    )
    classifier = Classifier(
        *(model, runtime, config.top_k, config.batch_size, _log.warning),
        with_embeddings=config.with_embeddings,
    )
    return classifier, runtime.embedding_size if config.with_embeddings else None
