"""The payloads of frames: operations that a worker asks the main process for, updates, and errors."""

import base64
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from resnet_service.errors import ServiceError
from resnet_service.inference.prediction_metrics import PredictionSettings
from resnet_service.inference.served_model import Placement
from resnet_service.models import ModelDescription, ModelVersion
from resnet_service.models.repository import TrafficSplit
from resnet_service.server.auth import APIKeys
from resnet_service.server.local_backend import LocalBackend
from resnet_service.server.workers.shared_memory import SlotLayout


@dataclass(frozen=True)
class ModelUpdate:
    """What a worker needs to serve a version of a model.

    `generation` numbers the engines that the main process has loaded, and `index` is that of the version in
    the shared memory. A worker may have `unreserved` requests in progress without a reservation while
    `open_wait_s` allows it.
    """

    generation: int
    index: int
    model: ModelDescription
    placement: Placement
    max_batch: int
    slots: SlotLayout
    unreserved: int
    predictions: PredictionSettings


@dataclass(frozen=True)
class Update:
    """What a worker serves from now on: sent at the start and after each change.

    generations: all that serve, in the order of `ModelTable`.
    added: those that the worker does not know yet.
    """

    generations: tuple[int, ...]
    added: tuple[ModelUpdate, ...]
    traffic: Mapping[str, TrafficSplit]
    api_keys: APIKeys


def encode_call(name: str, *arguments: Any) -> bytes:
    """Return the payload of a call."""
    return json.dumps([name, *arguments]).encode()


async def answer_call(backend: LocalBackend, payload: bytes) -> object:
    """Run the operation that a worker asks for, and return its result. Raises the errors of `Backend`."""
    name, *arguments = json.loads(payload)
    match name:
        case "check_alive":
            await backend.check_alive()
        case "check_ready":
            await backend.check_ready()
        case "info":
            return await backend.info()
        case "model_statuses":
            return await backend.model_statuses()
        case "statistics":
            return await backend.statistics()
        case "benchmark":
            key, *rest = arguments
            return await backend.benchmark(ModelVersion(*key), *rest)
        case "explain":
            key, pixels, side, class_id, deadline = arguments
            crop = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(side, side, 3)
            return await backend.explain(ModelVersion(*key), crop, class_id, deadline)
        case "render_metrics":
            return await backend.render_metrics(*arguments)
        case "reload":
            await backend.reload()
        case "load":
            await backend.load(*arguments)
        case "unload":
            await backend.unload(*arguments)
        case "count_request":
            key = backend.api_keys.find(bytes.fromhex(arguments[0]))
            if key is not None:
                await backend.count_request(key)
        case _:
            raise ValueError(f"unknown call {name!r}")
    return None


def encode_error(error: BaseException) -> bytes:
    """Return the payload of a FAILED frame."""
    kept = error if isinstance(error, ServiceError) else RuntimeError(f"error in the main process: {error!r}")
    return pickle.dumps(kept)


def decode_error(payload: bytes) -> Exception:
    """Return the error of a FAILED frame."""
    return cast(Exception, pickle.loads(payload))  # noqa: S301 - from the main process
