"""Images through a model on Ray Data: tasks that read and decode, actors that hold the model.

Only crops, 150 KB each at 224x224, travel between processes; a full image stays in the task that reads it.
"""

import logging
import math
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from resnet_service import errors
from resnet_service.batch_inference.results import SCHEMA
from resnet_service.batch_inference.storage import Location, read
from resnet_service.devices import Precision, choose_device
from resnet_service.errors import ClusterError, ServiceError, StorageError
from resnet_service.images import Preprocessing
from resnet_service.inference import ClassificationResult, Classifier, DecodedImage, ImageInput, decode_all
from resnet_service.machine import available_cpus
from resnet_service.models import Model
from resnet_service.runtimes.selection import RuntimeName, create_runtimes

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it reports to its makers
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray Data's own actors make it warn of Ray Data

import ray
import ray.data

Batch = dict[str, npt.NDArray[Any]]

_BLOCK: Final = 128
"""Images that one task decodes, at most: 19 MB of crops at 224x224."""

_REJECTION: Final = ("rejection", "reason")
_WITH_REJECTION: Final = pa.schema([*SCHEMA, *(pa.field(name, pa.string()) for name in _REJECTION)])
"""A worker's own error travels as a row: of one that is raised Ray brings the traceback's text only."""

_READERS: Final = 16
"""WorkerPool in which a task waits for an object store."""

_CONNECT_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True)
class ExecutionConfig:
    """How the actors run the model.

    `device` is auto, cpu, cuda or mps. `gpus` is each actor's share of one: 0.5 puts two on each GPU; None is
    a whole one where the cluster has any and the device may be one.
    """

    device: str = "auto"
    precision: Precision | Literal["auto"] = "auto"
    runtime: RuntimeName = "auto"
    actors: int = 1
    gpus: float | None = None
    batch_size: int = 64
    top_k: int = 5


@contextmanager
def ray_cluster(address: str | None = None) -> Iterator[None]:
    """Join the Ray cluster at `address`, HOST:PORT, or have one of one's own on this machine.

    The latter ends with the block.

    Raises ClusterError where nobody answers there.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        _check_reachable(address)
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, **options)
        else:
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ClusterError(f"no Ray cluster could be used: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Try the address first: Ray itself goes on trying for minutes, and may then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    try:
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ClusterError(f"no Ray cluster answers at {address!r} (HOST:PORT): {error}") from error


def classify_dataset(
    location: Location, paths: Sequence[str], model: Model, config: ExecutionConfig
) -> Iterator[pa.Table]:
    """Yield rows of `answers.SCHEMA` for images of `place`, in no particular order, as they are ready.

    Needs a `cluster`. A task or an actor that dies is begun anew by Ray, and each image still has one row.
    Raises what the model's runtime raises, StorageError where images can no longer be reached, and
    ClusterError where the cluster has not what is asked for.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    actors = min(config.actors, math.ceil(len(paths) / config.batch_size))
    each_node = math.ceil(actors / max(1, sum(node["Alive"] for node in ray.nodes())))
    gpus = _gpus(config)
    # Of few images, too, each core and each actor gets its share.
    block = max(1, min(_BLOCK, len(paths) // (4 * max(actors, int(ray.cluster_resources().get("CPU", 1))))))
    blocks = [
        pa.table({"path": pa.array(paths[start : start + block], pa.string())})
        for start in range(0, len(paths), block)
    ]
    decode = partial(_decode, location, model.preprocessing)
    # By reference, or every restart of an actor would need the driver to send the weights again.
    weights = ray.put(model)
    rows = (
        ray.data.from_arrow(blocks)
        .map_batches(decode, batch_size=None, num_cpus=1)
        .map_batches(
            _Actor,
            fn_constructor_args=(weights, replace(config, gpus=gpus), each_node),
            batch_size=config.batch_size,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=0,  # whose cores the tasks share: a task waits for disks, an actor for tasks
            num_gpus=gpus,
        )
    )
    try:
        for table in cast(Iterator[pa.Table], rows.iter_batches(batch_size=None, batch_format="pyarrow")):
            for kind, message in zip(*(table.column(name).to_pylist() for name in _REJECTION), strict=True):
                if kind is not None:
                    raise getattr(errors, kind)(message)
            yield table.select(SCHEMA.names).cast(SCHEMA)
    except ray.exceptions.RayError as error:
        raise ClusterError(f"Ray gave up: {error}") from error


def _gpus(config: ExecutionConfig) -> float:
    """Return each actor's share of a GPU.

    Raises ClusterError where there is less: Ray would wait for more, without a word.
    """
    there: float = ray.cluster_resources().get("GPU", 0)
    if config.gpus is None:
        return 1.0 if there and config.device in ("auto", "cuda") else 0.0
    if config.gpus > there:
        raise ClusterError(f"each actor is to have {config.gpus:g} GPUs, and the cluster has {there:g}")
    return config.gpus


def _decode(location: Location, preprocessing: Preprocessing, batch: Batch) -> Batch:
    """[N] paths -> [N] paths, crops [N, S, S, 3] uint8, and why there is none, "" where there is one.

    Where the images cannot be reached, `unreachable` has the reason.
    """
    sources = [ImageInput(path, partial(read, location, path)) for path in batch["path"].tolist()]
    threads = 1 if location.is_local else _READERS
    side = preprocessing.crop
    crops = np.zeros((len(sources), side, side, 3), np.uint8)
    reasons = [""] * len(sources)
    unreachable = ""
    try:
        for index, image in enumerate(decode_all(sources, preprocessing, threads, 2 * threads)):
            reasons[index] = image.error or ""
            if image.crop is not None:
                crops[index] = image.crop
    except OSError as error:
        unreachable = str(error).splitlines()[0]
    return {
        "path": batch["path"],
        "crop": crops,
        "error": np.array(reasons, dtype=object),
        "unreachable": np.array([unreachable] * len(sources), dtype=object),
    }


class _Actor:
    """Holds the model on its device for as long as the data set takes."""

    def __init__(
        self, model: "Model | ray.ObjectRef[Model]", config: ExecutionConfig, each_node: int
    ) -> None:
        if isinstance(model, ray.ObjectRef):
            model = ray.get(model)
        self._name = model.name
        self._classifier: Classifier | None = None
        self._rejection: dict[str, str] = {}
        try:
            self._classifier = _on_device(model, config, available_cpus() // each_node)
        except ServiceError as error:
            self._rejection = _rejection(error)

    def __call__(self, batch: Batch) -> pa.Table:
        """[N] paths, crops and errors -> rows of `answers.SCHEMA`."""
        if self._classifier is None:
            return pa.Table.from_pylist([self._rejection], _WITH_REJECTION)
        for reason in filter(None, batch["unreachable"]):
            rejection = _rejection(StorageError(f"images can no longer be reached: {reason}"))
            return pa.Table.from_pylist([rejection], _WITH_REJECTION)
        images = [
            DecodedImage(path, None if error else crop, 0.0, error or None)
            for path, crop, error in zip(batch["path"], batch["crop"], batch["error"], strict=True)
        ]
        try:
            rows = list(map(self._row, self._classifier.run_all(images)))
        except ServiceError as error:
            rows = [_rejection(error)]
        return pa.Table.from_pylist(rows, _WITH_REJECTION)

    def _row(self, outcome: ClassificationResult) -> dict[str, Any]:
        ranked = [
            {"class_id": one.class_id, "label": one.label, "probability": one.probability}
            for one in outcome.ranking
        ]
        best = ranked[0] if ranked else {}
        error, top_k = outcome.error, ranked or None
        return {"path": outcome.name, "top_k": top_k, "model": self._name, "error": error, **best}


def _rejection(error: ServiceError) -> dict[str, str]:
    return dict(zip(_REJECTION, (type(error).__name__, str(error)), strict=True))


def _on_device(model: Model, config: ExecutionConfig, cores: int) -> Classifier:
    device = choose_device(config.device)
    if config.device == "auto" and device.type == "cuda" and not config.gpus:
        device = choose_device("cpu")  # the GPU is another's: Ray does not hide it
    [runtime] = create_runtimes(
        model,
        [device],
        name=config.runtime,
        precision=config.precision,
        streams_per_device=1,
        threads=max(1, cores),
    )
    return Classifier(model, runtime, config.top_k, config.batch_size, _log)


def _log(message: str) -> None:
    logging.getLogger(__name__).warning(message)
