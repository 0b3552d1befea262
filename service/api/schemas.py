"""The bodies of the API's answers."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from service.bench import Row
from service.hardware import Fingerprint


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class Problem(_Body):
    """An error, as RFC 9457 describes it."""

    type: str = Field(description="A URI that names the kind of error.")
    title: str = Field(description="The kind of error in words.")
    status: int = Field(description="The HTTP status, repeated.")
    detail: str = Field(description="What was wrong with this request.")


class ProtocolError(_Body):
    """An error, as the Open Inference Protocol describes it."""

    error: str = Field(description="What was wrong with this request.")


class Prediction(_Body):
    """One class of an answer."""

    class_id: int = Field(ge=0)
    label: str
    probability: float = Field(ge=0, le=1)


class Timing(_Body):
    """Where the time went, in milliseconds."""

    decode: float = Field(description="From bytes to the crop, waiting for a decoding thread included.")
    queue: float = Field(description="Waiting for the device.")
    device: float = Field(description="The batch on the device.")
    total: float = Field(description="From the request's head to its answer, reading included.")


class Predicted(_Body):
    """The best classes of one picture, best first."""

    predictions: list[Prediction]
    model: str
    device: str
    timing_ms: Timing


class BatchItem(_Body):
    """One picture of a batch: its predictions, or its own error."""

    filename: str | None = None
    predictions: list[Prediction] | None = None
    timing_ms: Timing | None = None
    error: Problem | None = None


class PredictedBatch(_Body):
    """One result for each `file` part, in the order of the request."""

    results: list[BatchItem]
    model: str
    device: str


class Bench(_Body):
    """The loaded model measured on the loaded device; latencies are of whole batches."""

    model: str
    device: str
    precision: str
    runtime: str
    hardware: Fingerprint
    rows: list[Row]


class Health(_Body):
    """A probe's yes."""

    status: Annotated[str, Field(examples=["ok"])]


class Limits(_Body):
    """What a request may ask for."""

    max_upload_bytes: int
    max_pixels: int
    max_files: int
    max_batch: int
    max_queue: int
    request_timeout_s: float
    formats: list[str]


class Info(_Body):
    """What is served, on what, within which limits."""

    model: str
    source: str
    labels: int = Field(description="The number of classes.")
    input_size: int = Field(description="The side of the network's input, in pixels.")
    device: str
    precision: str
    runtime: str
    instances: int = Field(description="Batches that can run at the same time, on all devices.")
    version: str
    versions: dict[str, str]
    hardware: Fingerprint
    limits: Limits
