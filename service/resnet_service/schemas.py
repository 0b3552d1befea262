"""The JSON bodies of responses: the server writes them, the client parses them.

Imports neither FastAPI nor torch, so that the client needs neither.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from resnet_service.machine import HardwareInfo

Priority = Literal["interactive", "bulk"]
"""Of a request: a person waits for an interactive one, only a program for a bulk one."""

_PREDICTION: Final = {"class_id": 5, "label": "dog", "probability": 0.535}
_TIMING: Final = {"decode": 3.1, "queue": 0.1, "device": 2.4, "total": 6.0}
_PROBLEM: Final = {
    "type": "urn:resnet-service:problem:unsupported-media-type",
    "title": "Unsupported media type",
    "status": 415,
    "detail": "not an image in a supported format (JPEG, PNG, WEBP, GIF, BMP, TIFF)",
}


def _example(**example: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"example": example})


class ResponseModel(BaseModel):
    """Base class of all response bodies: immutable, and fields may start with `model_`."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


class Problem(ResponseModel):
    """An error in the format of RFC 9457."""

    model_config = _example(**_PROBLEM)

    type: str = Field(description="A URI that identifies the kind of error.")
    title: str = Field(description="The kind of error in words.")
    status: int = Field(description="The HTTP status code of the response.")
    detail: str = Field(description="The cause of this error.")


class V2Error(ResponseModel):
    """An error in the format of the Open Inference Protocol."""

    error: str = Field(description="The cause of this error.")


class Prediction(ResponseModel):
    """One class of an image's ranking: its index, its label and its probability."""

    class_id: int = Field(ge=0)
    label: str
    probability: float = Field(ge=0, le=1)


class StageTimings(ResponseModel):
    """Duration of each stage of a request, in milliseconds."""

    decode: float = Field(description="Decoding and preprocessing, including the wait for a decode thread.")
    queue: float = Field(description="Waiting for the device.")
    device: float = Field(description="Running the batch on the device.")
    total: float = Field(
        description="From the end of the request headers to the response, including reading the body."
    )


class PredictResponse(ResponseModel):
    """The most probable classes of one image, most probable first."""

    model_config = _example(
        predictions=[_PREDICTION], model="cifar10", version="1", device="cpu", timing_ms=_TIMING
    )

    predictions: list[Prediction]
    model: str
    version: str = Field(description="The version of the model that answered.")
    device: str
    timing_ms: StageTimings


class BatchPredictItem(ResponseModel):
    """The result of one image of a batch: its predictions or its error."""

    filename: str | None = None
    predictions: list[Prediction] | None = None
    timing_ms: StageTimings | None = None
    error: Problem | None = None


class BatchPredictResponse(ResponseModel):
    """One result for each `file` part, in the order of the request."""

    model_config = _example(
        results=[
            {"filename": "dog.jpg", "predictions": [_PREDICTION], "timing_ms": _TIMING},
            {"filename": "notes.txt", "error": _PROBLEM},
        ],
        model="cifar10",
        version="1",
        device="cpu",
    )

    results: list[BatchPredictItem]
    model: str
    version: str = Field(description="The version of the model that answered.")
    device: str


class EmbedResponse(ResponseModel):
    """The embedding of one image."""

    model_config = _example(
        embedding=[0.12, 0.0, 1.5],
        dimensions=3,
        model="cifar10",
        version="1",
        device="cpu",
        timing_ms=_TIMING,
    )

    embedding: list[float] = Field(description="The float32 values.")
    dimensions: int = Field(description="The number of values.")
    model: str
    version: str = Field(description="The version of the model that answered.")
    device: str
    timing_ms: StageTimings


class ExplainResponse(ResponseModel):
    """Which places of an image speak for a class: the heat of equal parts of the image that the model saw."""

    model_config = _example(
        class_id=258,
        label="Samoyed",
        probability=0.736,
        heat=[[0.12, 0.4], [0.71, 1.0]],
        input_size=224,
        model="efficientnet_lite0",
        version="1",
    )

    class_id: int = Field(ge=0, description="Index of the class that was explained.")
    label: str
    probability: float = Field(ge=0, le=1)
    heat: list[list[float]] = Field(
        description="Rows from top to bottom, 0 to 1; all 0 if no place speaks for the class."
    )
    input_size: int = Field(description="Width and height of the image that the model saw, in pixels.")
    model: str
    version: str = Field(description="The version of the model that answered.")


class HealthResponse(ResponseModel):
    """The response of a health probe that succeeds."""

    status: Annotated[str, Field(examples=["ok"])]


class RequestLimits(ResponseModel):
    """The limits that apply to requests."""

    max_upload_bytes: int
    max_pixels: int
    max_images_per_request: int
    max_batch: int
    max_queue: int | None = Field(description="The number of images that may wait; null: any number.")
    max_queue_wait_s: float
    request_timeout_s: float
    formats: list[str] = Field(description="The supported image formats.")


ModelState = Literal["READY", "LOADING", "UNAVAILABLE"]


class ModelStatus(ResponseModel):
    """A version of a model: whether it serves requests, and the reason if it does not."""

    name: str
    version: str
    state: ModelState
    reason: str


class InfoResponse(ResponseModel):
    """The models, the device, the versions, the machine and the request limits.

    The fields before `version` describe the version that answers requests that name no model.
    """

    model: str
    model_version: str
    source: str = Field(description="The file or URL of the weights.")
    labels: int = Field(description="The number of classes.")
    input_size: int = Field(description="Width and height of the network's input, in pixels.")
    embedding_size: int | None = Field(
        None, description="The number of values of an embedding; null if the model has none."
    )
    device: str
    precision: str
    runtime: str
    streams: int = Field(description="The number of batches that can run concurrently, over all devices.")
    version: str = Field(description="The version of the service.")
    versions: dict[str, str] = Field(description="The versions of its libraries.")
    models: list[ModelStatus] = Field(description="All versions of all models.")
    hardware: HardwareInfo
    limits: RequestLimits


class LabelsResponse(ResponseModel):
    """The labels of a model in the order of its classes."""

    model_config = _example(model="cifar10", version="1", labels=["airplane", "automobile", "bird"])

    model: str
    version: str
    labels: list[str]


class IndexResponse(ResponseModel):
    """The response of / to programs; links are paths on this server."""

    name: str
    version: str = Field(description="The version of the service.")
    links: dict[str, str]


@dataclass(frozen=True)
class BenchmarkRow:
    """Measurements of one batch size; latencies are in milliseconds per batch."""

    batch_size: int
    iterations: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    images_per_second: float


class BenchResponse(ResponseModel):
    """Measurements of a loaded model on its first device; latencies are per batch."""

    model: str
    version: str
    device: str
    precision: str
    runtime: str
    hardware: HardwareInfo
    rows: list[BenchmarkRow]
