"""What the service answers requests for images with; the server writes these bodies, clients read them."""

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

_PREDICTION: Final = {"class_id": 5, "label": "dog", "probability": 0.535}
_TIMING: Final = {"decode": 3.1, "queue": 0.1, "device": 2.4, "total": 6.0}
_PROBLEM: Final = {
    "type": "urn:resnet-service:problem:unsupported-media-type",
    "title": "Unsupported media type",
    "status": 415,
    "detail": "not an image in a format the service reads (JPEG, PNG, WEBP, GIF, BMP, TIFF)",
}


def _example(**example: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"example": example})


class ResponseModel(BaseModel):
    """What every body is: frozen."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


class Problem(ResponseModel):
    """An error, as RFC 9457 describes it."""

    model_config = _example(**_PROBLEM)

    type: str = Field(description="A URI that names the kind of error.")
    title: str = Field(description="The kind of error in words.")
    status: int = Field(description="The HTTP status, repeated.")
    detail: str = Field(description="What was wrong with this request.")


class V2Error(ResponseModel):
    """An error, as the Open Inference Protocol describes it."""

    error: str = Field(description="What was wrong with this request.")


class Prediction(ResponseModel):
    """One class of an answer."""

    class_id: int = Field(ge=0)
    label: str
    probability: float = Field(ge=0, le=1)


class StageTimings(ResponseModel):
    """Where the time went, in milliseconds."""

    decode: float = Field(description="From bytes to the crop, waiting for a decoding thread included.")
    queue: float = Field(description="Waiting for the device.")
    device: float = Field(description="The batch on the device.")
    total: float = Field(description="From the request's head to its answer, reading included.")


class PredictResponse(ResponseModel):
    """The best classes of one image, best first."""

    model_config = _example(predictions=[_PREDICTION], model="bundled", device="cpu", timing_ms=_TIMING)

    predictions: list[Prediction]
    model: str
    device: str
    timing_ms: StageTimings


class BatchPredictItem(ResponseModel):
    """One image of a batch: its predictions, or its own error."""

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
        model="bundled",
        device="cpu",
    )

    results: list[BatchPredictItem]
    model: str
    device: str
