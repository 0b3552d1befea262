"""The bodies of the answers about the service itself."""

from typing import Annotated

from pydantic import Field

from service.bench import Row
from service.hardware import Fingerprint
from service.schemas import Body


class Bench(Body):
    """The loaded model measured on the loaded device; latencies are of whole batches."""

    model: str
    device: str
    precision: str
    runtime: str
    hardware: Fingerprint
    rows: list[Row]


class Health(Body):
    """A probe's yes."""

    status: Annotated[str, Field(examples=["ok"])]


class Limits(Body):
    """What a request may ask for."""

    max_upload_bytes: int
    max_pixels: int
    max_files: int
    max_batch: int
    max_queue: int
    request_timeout_s: float
    formats: list[str]


class Info(Body):
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
