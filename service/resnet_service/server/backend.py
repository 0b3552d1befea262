"""What the routes need from the process that has the devices: one interface, local or remote.

`local_backend` implements it in the process that has the devices, and `workers.remote_backend` in an HTTP
worker. The routes do not know which one they use.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, NamedTuple, Protocol

from resnet_service.batching import Lane
from resnet_service.inference.served_model import ImageReservation, ServedModel
from resnet_service.inference.statistics import ModelStatistics, RequestCounters
from resnet_service.schemas import BenchResponse, InfoResponse
from resnet_service.server.auth import APIKey, APIKeys
from resnet_service.server.heartbeat import Heartbeat

Admission = AbstractAsyncContextManager[tuple[ServedModel, ImageReservation]]


ModelState = Literal["READY", "LOADING", "UNAVAILABLE"]


class ModelStatus(NamedTuple):
    """Whether a version of a model serves requests; `reason` is empty if it does."""

    name: str
    version: str
    state: ModelState
    reason: str


class Backend(Protocol):
    """The model that is served, the admission to its devices, and the operation of the service."""

    heartbeat: Heartbeat
    """When the event loop of this process last ran."""

    request_counters: RequestCounters
    """Those of the requests that end in this process."""

    @property
    def served_model(self) -> ServedModel:
        """The current model."""
        ...

    @property
    def api_keys(self) -> APIKeys:
        """The current API keys."""
        ...

    @property
    def fatal_error(self) -> BaseException | None:
        """The error after which this process cannot classify images any more."""
        ...

    @property
    def is_hung(self) -> bool:
        """Whether a call has been running for twice the stall timeout: the process has to end."""
        ...

    def admit(self, timeout_s: float, lane: Lane) -> Admission:
        """Yield the current model and a reservation to one inference request, before its body is read.

        `timeout_s` is the time that the request may take, without that to receive its body. Raises what
        `Engine.reserve` raises.
        """
        ...

    async def check_alive(self) -> None:
        """Raise ServiceUnavailable if the service has to be restarted."""
        ...

    async def check_ready(self) -> None:
        """Raise ServiceUnavailable if the service should get no requests."""
        ...

    async def count_request(self, key: APIKey) -> None:
        """Count a request of an API key with a rate limit. Raises TooManyRequests."""
        ...

    async def info(self) -> InfoResponse:
        """Return the model, the device, the versions, the machine and the limits."""
        ...

    async def model_statuses(self) -> Sequence[ModelStatus]:
        """Return all versions of all models, and whether they serve requests."""
        ...

    async def statistics(self) -> Sequence[ModelStatistics]:
        """Return the counters of all versions of all models, over all processes."""
        ...

    async def benchmark(self, batch_sizes: list[int], iterations: int) -> BenchResponse:
        """Time batches of random pixels. Raises Conflict if one is running, ServiceUnavailable."""
        ...

    async def render_metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics and their content type, in the format that the header `Accept` names."""
        ...

    async def reload(self) -> None:
        """Load the model and read the API keys again, and replace both after the warm-up.

        Raises ReloadError, which leaves both unchanged, and Conflict if a reload is running.
        """
        ...

    def start(self) -> None:
        """Start to serve, on the running event loop."""
        ...

    async def wait_until_warm(self) -> None:
        """Wait until requests are accepted. Raises the error that prevents it."""
        ...

    def begin_drain(self) -> None:
        """Stop being ready, for good; requests on open connections still get a response."""
        ...

    async def close(self, timeout_s: float) -> None:
        """Reject new requests, finish the accepted ones, and return within 2 * `timeout_s` seconds."""
        ...
