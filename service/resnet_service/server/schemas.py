"""The bodies of the answers about the service itself."""

from typing import Annotated

from pydantic import Field

from resnet_service.benchmark.timing import BenchmarkRow
from resnet_service.machine import HardwareInfo
from resnet_service.schemas import ResponseModel


class BenchResponse(ResponseModel):
    """The loaded model measured on the loaded device; latencies are of whole batches."""

    model: str
    device: str
    precision: str
    runtime: str
    hardware: HardwareInfo
    rows: list[BenchmarkRow]


class HealthResponse(ResponseModel):
    """A probe's yes."""

    status: Annotated[str, Field(examples=["ok"])]


class RequestLimits(ResponseModel):
    """What a request may ask for."""

    max_upload_bytes: int
    max_pixels: int
    max_images_per_request: int
    max_batch: int
    max_queue: int
    request_timeout_s: float
    formats: list[str]


class InfoResponse(ResponseModel):
    """What is served, on what, within which limits."""

    model: str
    source: str
    labels: int = Field(description="The number of classes.")
    input_size: int = Field(description="The side of the network's input, in pixels.")
    device: str
    precision: str
    runtime: str
    streams: int = Field(description="Batches that can run at the same time, on all devices.")
    version: str
    versions: dict[str, str]
    hardware: HardwareInfo
    limits: RequestLimits
