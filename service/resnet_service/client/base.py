"""The parts of the clients that do no I/O on the network: errors, requests and parsing of responses."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from resnet_service import __version__
from resnet_service.client.retry import Outcome, RetryState
from resnet_service.schemas import (
    BatchPredictResponse,
    BenchmarkRow,
    EmbedResponse,
    ExplainResponse,
    InfoResponse,
    PredictResponse,
    Problem,
)

Image = bytes | Path
"""An encoded image, or the path of an image file."""

_Body = TypeVar("_Body")

_INFO_TIMEOUT_S: Final = 5.0
_PREDICT_BODY: Final = TypeAdapter(PredictResponse)
_BATCH_BODY: Final = TypeAdapter(BatchPredictResponse)
_EMBED_BODY: Final = TypeAdapter(EmbedResponse)
_EXPLAIN_BODY: Final = TypeAdapter(ExplainResponse)
_INFO_BODY: Final = TypeAdapter(InfoResponse)
TEXT: Final = TypeAdapter(str)
_BENCH_ROWS: Final = TypeAdapter(list[BenchmarkRow])


class ServiceUnavailableError(Exception):
    """The URL does not respond, or another program responds; the message names the URL and the reason."""


class APIError(Exception):
    """The service responded with an error. The message is the service's.

    Attributes:
        problem: the body of the response.
        status: its HTTP status code.

    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem
        self.status = problem.status


@dataclass(frozen=True)
class RequestSpec(Generic[_Body]):
    """A request that may be sent several times, and how to parse its response.

    Attributes:
        body: the type of the response body, or of its member `field`; JSON, unless it is `TEXT`.
        timeout_s: replaces the client's timeout.

    """

    method: str
    path: str
    body: TypeAdapter[_Body]
    field: str | None = None
    parameters: dict[str, str | int] | None = None
    files: list[tuple[str, tuple[str, bytes]]] | None = None
    timeout_s: float | None = None


class BaseClient:
    """Configuration of a client: builds the arguments of requests and parses responses."""

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = 60.0, attempts: int = 3
    ) -> None:
        """Configure the client.

        Args:
            url: of the service, for example http://localhost:8000.
            api_key: sent with each request, if the service requires one.
            timeout_s: no attempt starts later, and no attempt waits longer to connect or for data.
            attempts: maximum number of times that a request is sent.

        """
        self.url = url.rstrip("/")
        self._url_without_password = re.sub("//[^/@]*@", "//", self.url)
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._headers = {"User-Agent": f"resnet-service/{__version__}"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def _retry_state(self, spec: RequestSpec[_Body]) -> RetryState:
        return RetryState(self._attempts, spec.timeout_s or self._timeout_s)

    def _request_arguments(self, spec: RequestSpec[_Body]) -> dict[str, Any]:
        """Return the arguments for httpx, without the timeout."""
        return {
            "method": spec.method,
            "url": f"{self.url}{spec.path}",
            "params": spec.parameters,
            "files": spec.files,
        }

    def _parse(self, spec: RequestSpec[_Body], outcome: Outcome) -> _Body:
        """Return the body of a successful response; raise APIError or ServiceUnavailableError otherwise."""
        url = self._url_without_password
        if not isinstance(outcome, httpx.Response):
            reason = str(outcome) or type(outcome).__name__
            raise ServiceUnavailableError(f"{url} does not respond: {reason}") from outcome
        try:
            body: Any = outcome.text if spec.body is TEXT and not outcome.is_error else outcome.json()
            if outcome.is_error:
                raise APIError(Problem.model_validate(body))
            return spec.body.validate_python(body[spec.field] if spec.field else body)
        except (ValueError, LookupError, TypeError, ValidationError) as error:
            raise ServiceUnavailableError(f"{url} is not a resnet-service endpoint") from error


def predict_request(
    image: Image, name: str | None, **parameters: str | int | None
) -> RequestSpec[PredictResponse]:
    """Return the request for one image; reads the file if it is a path."""
    query = _drop_none(**parameters)
    return RequestSpec("POST", "/predict", _PREDICT_BODY, parameters=query, files=[_part(image, name)])


def predict_batch_request(
    images: Sequence[Image], **parameters: str | int | None
) -> RequestSpec[BatchPredictResponse]:
    """Return the request for several images; reads those that are paths."""
    query, files = _drop_none(**parameters), [_part(image) for image in images]
    return RequestSpec("POST", "/predict/batch", _BATCH_BODY, parameters=query, files=files)


def embed_request(
    image: Image, name: str | None, **parameters: str | int | None
) -> RequestSpec[EmbedResponse]:
    """Return the request for the embedding of one image; reads the file if it is a path."""
    query = _drop_none(**parameters)
    return RequestSpec("POST", "/embed", _EMBED_BODY, parameters=query, files=[_part(image, name)])


def explain_request(
    image: Image, name: str | None, **parameters: str | int | None
) -> RequestSpec[ExplainResponse]:
    """Return the request for the explanation of one image, as numbers; reads the file if it is a path."""
    query = _drop_none(**parameters, format="json")
    return RequestSpec("POST", "/explain", _EXPLAIN_BODY, parameters=query, files=[_part(image, name)])


def info_request() -> RequestSpec[InfoResponse]:
    """Return the request for the description of the service."""
    return RequestSpec("GET", "/info", _INFO_BODY, timeout_s=_INFO_TIMEOUT_S)


def metrics_request() -> RequestSpec[str]:
    """Return the request for the metrics."""
    return RequestSpec("GET", "/metrics", TEXT, timeout_s=_INFO_TIMEOUT_S)


def bench_request(
    batch_sizes: Sequence[int] | None, iterations: int | None, timeout_s: float
) -> RequestSpec[list[BenchmarkRow]]:
    """Return the request for a benchmark; the service has defaults for sizes and iterations."""
    sizes = None if batch_sizes is None else ",".join(map(str, batch_sizes))
    parameters = _drop_none(batch_sizes=sizes, iterations=iterations)
    return RequestSpec("GET", "/bench", _BENCH_ROWS, "rows", parameters, timeout_s=timeout_s)


def _part(image: Image, name: str | None = None) -> tuple[str, tuple[str, bytes]]:
    if isinstance(image, Path):
        return "file", (name or image.name, image.read_bytes())
    return "file", (name or "image", image)


def _drop_none(**parameters: str | int | None) -> dict[str, str | int]:
    return {name: value for name, value in parameters.items() if value is not None}
