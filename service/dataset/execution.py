"""Pictures through a model on Ray Data: tasks that read and decode, actors that hold the model.

Only crops, 150 KB each at 224x224, travel between processes; a full picture stays in the task that reads it.
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

from service import errors, hardware, offline
from service.dataset.answers import SCHEMA
from service.dataset.storage import Place, read
from service.errors import ClusterUnavailable, ServiceError, StorageUnavailable
from service.hardware import Precision
from service.images import Preprocessing
from service.models import Model
from service.offline import Classifier, Decoded, Outcome, Source
from service.runtimes.selection import Name, open_runtimes

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it reports to its makers
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray Data's own actors make it warn of Ray Data

import ray
import ray.data

Batch = dict[str, npt.NDArray[Any]]

_BLOCK: Final = 128
"""Pictures that one task decodes, at most: 19 MB of crops at 224x224."""

_REFUSAL: Final = ("refusal", "reason")
_WITH_REFUSAL: Final = pa.schema([*SCHEMA, *(pa.field(name, pa.string()) for name in _REFUSAL)])
"""A worker's own error travels as a row: of one that is raised Ray brings the traceback's text only."""

_READERS: Final = 16
"""Threads in which a task waits for an object store."""

_CONNECT_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True)
class Execution:
    """How the actors run the model.

    `device` is auto, cpu, cuda or mps. `gpus` is each actor's share of one: 0.5 puts two on each GPU; None is
    a whole one where the cluster has any and the device may be one.
    """

    device: str = "auto"
    precision: Precision | Literal["auto"] = "auto"
    runtime: Name = "auto"
    actors: int = 1
    gpus: float | None = None
    batch_size: int = 64
    top_k: int = 5


@contextmanager
def cluster(address: str | None = None) -> Iterator[None]:
    """Join the Ray cluster at `address`, HOST:PORT, or have one of one's own on this machine.

    The latter ends with the block.

    Raises ClusterUnavailable where nobody answers there.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        _knock(address)
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, **options)
        else:
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ClusterUnavailable(f"no Ray cluster could be used: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Try the address first: Ray itself goes on trying for minutes, and may then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    try:
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ClusterUnavailable(f"no Ray cluster answers at {address!r} (HOST:PORT): {error}") from error


def classified(place: Place, paths: Sequence[str], model: Model, how: Execution) -> Iterator[pa.Table]:
    """Yield rows of `answers.SCHEMA` for pictures of `place`, in no particular order, as they are ready.

    Needs a `cluster`. A task or an actor that dies is begun anew by Ray, and each picture still has one row.
    Raises what the model's runtime raises, StorageUnavailable where pictures can no longer be reached, and
    ClusterUnavailable where the cluster has not what is asked for.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    actors = min(how.actors, math.ceil(len(paths) / how.batch_size))
    each_node = math.ceil(actors / max(1, sum(node["Alive"] for node in ray.nodes())))
    gpus = _gpus(how)
    # Of few pictures, too, each core and each actor gets its share.
    block = max(1, min(_BLOCK, len(paths) // (4 * max(actors, int(ray.cluster_resources().get("CPU", 1))))))
    blocks = [
        pa.table({"path": pa.array(paths[start : start + block], pa.string())})
        for start in range(0, len(paths), block)
    ]
    decode = partial(_decode, place, model.preprocessing)
    # By reference, or every restart of an actor would need the driver to send the weights again.
    weights = ray.put(model)
    rows = (
        ray.data.from_arrow(blocks)
        .map_batches(decode, batch_size=None, num_cpus=1)
        .map_batches(
            _Actor,
            fn_constructor_args=(weights, replace(how, gpus=gpus), each_node),
            batch_size=how.batch_size,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=0,  # whose cores the tasks share: a task waits for disks, an actor for tasks
            num_gpus=gpus,
        )
    )
    try:
        for table in cast(Iterator[pa.Table], rows.iter_batches(batch_size=None, batch_format="pyarrow")):
            for kind, message in zip(*(table.column(name).to_pylist() for name in _REFUSAL), strict=True):
                if kind is not None:
                    raise getattr(errors, kind)(message)
            yield table.select(SCHEMA.names).cast(SCHEMA)
    except ray.exceptions.RayError as error:
        raise ClusterUnavailable(f"Ray gave up: {error}") from error


def _gpus(how: Execution) -> float:
    """Return each actor's share of a GPU.

    Raises ClusterUnavailable where there is less: Ray would wait for more, without a word.
    """
    there: float = ray.cluster_resources().get("GPU", 0)
    if how.gpus is None:
        return 1.0 if there and how.device in ("auto", "cuda") else 0.0
    if how.gpus > there:
        raise ClusterUnavailable(f"each actor is to have {how.gpus:g} GPUs, and the cluster has {there:g}")
    return how.gpus


def _decode(place: Place, preprocessing: Preprocessing, batch: Batch) -> Batch:
    """[N] paths -> [N] paths, crops [N, S, S, 3] uint8, and why there is none, "" where there is one.

    Where the pictures cannot be reached, `unreachable` has the reason.
    """
    sources = [Source(path, partial(read, place, path)) for path in batch["path"].tolist()]
    threads = 1 if place.is_local else _READERS
    side = preprocessing.crop
    crops = np.zeros((len(sources), side, side, 3), np.uint8)
    reasons = [""] * len(sources)
    unreachable = ""
    try:
        for index, picture in enumerate(offline.decoded(sources, preprocessing, threads, 2 * threads)):
            reasons[index] = picture.error or ""
            if picture.crop is not None:
                crops[index] = picture.crop
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

    def __init__(self, model: "Model | ray.ObjectRef[Model]", how: Execution, each_node: int) -> None:
        if isinstance(model, ray.ObjectRef):
            model = ray.get(model)
        self._name = model.name
        self._classifier: Classifier | None = None
        self._refusal: dict[str, str] = {}
        try:
            self._classifier = _on_device(model, how, hardware.cores() // each_node)
        except ServiceError as error:
            self._refusal = _refusal(error)

    def __call__(self, batch: Batch) -> pa.Table:
        """[N] paths, crops and errors -> rows of `answers.SCHEMA`."""
        if self._classifier is None:
            return pa.Table.from_pylist([self._refusal], _WITH_REFUSAL)
        for reason in filter(None, batch["unreachable"]):
            refusal = _refusal(StorageUnavailable(f"pictures can no longer be reached: {reason}"))
            return pa.Table.from_pylist([refusal], _WITH_REFUSAL)
        pictures = [
            Decoded(path, None if error else crop, 0.0, error or None)
            for path, crop, error in zip(batch["path"], batch["crop"], batch["error"], strict=True)
        ]
        try:
            rows = list(map(self._row, self._classifier.run_all(pictures)))
        except ServiceError as error:
            rows = [_refusal(error)]
        return pa.Table.from_pylist(rows, _WITH_REFUSAL)

    def _row(self, outcome: Outcome) -> dict[str, Any]:
        ranked = [
            {"class_id": one.class_id, "label": one.label, "probability": one.probability}
            for one in outcome.ranking
        ]
        best = ranked[0] if ranked else {}
        error, top_k = outcome.error, ranked or None
        return {"path": outcome.name, "top_k": top_k, "model": self._name, "error": error, **best}


def _refusal(error: ServiceError) -> dict[str, str]:
    return dict(zip(_REFUSAL, (type(error).__name__, str(error)), strict=True))


def _on_device(model: Model, how: Execution, cores: int) -> Classifier:
    device = hardware.choose_device(how.device)
    if how.device == "auto" and device.type == "cuda" and not how.gpus:
        device = hardware.choose_device("cpu")  # the GPU is another's: Ray does not hide it
    [runtime] = open_runtimes(
        model,
        [device],
        name=how.runtime,
        precision=how.precision,
        instances=1,
        threads=max(1, cores),
    )
    return Classifier(model, runtime, how.top_k, how.batch_size, _log)


def _log(message: str) -> None:
    logging.getLogger(__name__).warning(message)
