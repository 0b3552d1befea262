"""What the routes need from the process that has the devices: one interface, local or remote.

`local_backend` implements it in the process that has the devices, and `workers.remote_backend` in an HTTP
worker. The routes do not know which one they use.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from resnet_service.batching import Lane
from resnet_service.explanations import Explanation
from resnet_service.images import Crop
from resnet_service.inference.served_model import ImageReservation, ServedModel
from resnet_service.inference.statistics import ModelStatistics, RequestCounters
from resnet_service.models import ModelVersion
from resnet_service.schemas import BenchResponse, InfoResponse, ModelStatus
from resnet_service.server.auth import APIKey, APIKeys
from resnet_service.server.heartbeat import Heartbeat
from resnet_service.server.model_table import ModelTable

Admission = AbstractAsyncContextManager[tuple[ServedModel, ImageReservation]]


class Backend(Protocol):
    """The models that are served, the admission to its devices, and the operation of the service."""

    heartbeat: Heartbeat
    """When the event loop of this process last ran."""

    @property
    def models(self) -> ModelTable:
        """The versions of the models that serve now."""
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

    def admit(self, key: ModelVersion, timeout_s: float, lane: Lane) -> Admission:
        """Yield a model of `models` and a reservation to one inference request, before its body is read.

        `timeout_s` is the time that the request may take, without that to receive its body. Raises
        ModelNotFound if the version was unloaded, and what `Engine.reserve` raises.
        """
        ...

    def request_counters(self, key: ModelVersion) -> RequestCounters:
        """Return the counters of the requests to a model that end in this process."""
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
        """Return the models, the device, the versions, the machine and the limits."""
        ...

    async def model_statuses(self) -> Sequence[ModelStatus]:
        """Return all versions of all models, and whether they serve requests."""
        ...

    async def statistics(self) -> Sequence[ModelStatistics]:
        """Return the counters of all versions of all models, over all processes."""
        ...

    async def benchmark(self, key: ModelVersion, batch_sizes: list[int], iterations: int) -> BenchResponse:
        """Time batches of random pixels. Raises Conflict if one is running, ServiceUnavailable."""
        ...

    async def explain(
        self, key: ModelVersion, crop: Crop, class_id: int | None, deadline: float | None
    ) -> Explanation:
        """Explain a class of `crop`, [S, S, 3], by default the most probable one; one image at a time.

        `deadline` is a time of the event loop. Raises ModelNotFound, UnsupportedModelError,
        MissingDependencyError, DeadlineExceededError and InferenceError.
        """
        ...

    async def render_metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics and their content type, in the format that the header `Accept` names."""
        ...

    async def reload(self) -> None:
        """Load the models and read the API keys again, and replace both after the warm-up.

        Raises ReloadError, which leaves both unchanged, and Conflict if a load is running.
        """
        ...

    async def load(self, name: str) -> None:
        """Load a configured model, again if it is loaded, and use it after the warm-up.

        Raises ModelNotFound, ReloadError, which leaves everything unchanged, and Conflict as `reload` does.
        """
        ...

    async def unload(self, name: str) -> None:
        """Remove a model; its admitted requests are finished.

        Raises ModelNotFound, and Conflict for the last model or if a load is running.
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
