"""Convert errors to HTTP responses: one table from error class to status, and one body format (RFC 9457).

Below /v2 the body has the format of the Open Inference Protocol.
"""

import asyncio
import math
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from resnet_service import errors
from resnet_service.schemas import Problem, V2Error
from resnet_service.server.uploads import mark_body_discarded

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"
V2_PREFIX: Final = "/v2"
"""The path prefix of the Open Inference Protocol."""


class ProblemType(NamedTuple):
    """The HTTP status of an error class and the last part of its type URI."""

    status: int
    slug: str


PROBLEM_TYPES: Final[dict[type[errors.ServiceError], ProblemType]] = {
    errors.InvalidRequestError: ProblemType(422, "invalid-request"),
    errors.InvalidImageError: ProblemType(422, "invalid-image"),
    errors.UnsupportedMediaType: ProblemType(415, "unsupported-media-type"),
    errors.PayloadTooLarge: ProblemType(413, "payload-too-large"),
    errors.RequestTimeout: ProblemType(408, "request-timeout"),
    errors.Unauthorized: ProblemType(401, "unauthorized"),
    errors.Forbidden: ProblemType(403, "forbidden"),
    errors.Conflict: ProblemType(409, "conflict"),
    errors.OverloadedError: ProblemType(429, "overloaded"),
    errors.TooManyRequests: ProblemType(429, "too-many-requests"),
    errors.DeadlineExceededError: ProblemType(504, "deadline-exceeded"),
    errors.ServiceUnavailable: ProblemType(503, "service-unavailable"),
    errors.ReloadError: ProblemType(500, "reload-failed"),
    errors.InferenceError: ProblemType(500, "inference-failed"),
}
"""Error classes and their HTTP form. A subclass that is not listed uses its nearest listed base class."""

_NOT_READY_RETRY_AFTER_S: Final = 2
# Limits on reading the rest of a rejected upload; see `_LingeringResponse`.
_MAX_LINGER_S: Final = 2.0
_MAX_LINGER_BYTES: Final = 64 * 2**20


def to_problem(error: errors.ServiceError) -> Problem:
    """Return the response body of an error; its message becomes the detail."""
    kind = next((kind for kind in type(error).__mro__ if kind in PROBLEM_TYPES), errors.InferenceError)
    status, slug = PROBLEM_TYPES[kind]
    return Problem(
        type=f"urn:resnet-service:problem:{slug}",
        title=slug.replace("-", " ").capitalize(),
        status=status,
        detail=str(error),
    )


def http_problem(status: int, detail: str) -> Problem:
    """Return the response body of an error that has only an HTTP status, such as 404 for an unknown path."""
    return Problem(type="about:blank", title=HTTPStatus(status).phrase, status=status, detail=detail)


def add_exception_handlers(app: FastAPI) -> None:
    """Convert all errors raised by routes, and those of FastAPI and Starlette, to the same body format."""
    app.add_exception_handler(errors.ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Exception, _unhandled_exception)


def openapi_responses(
    *kinds: type[errors.ServiceError], protocol: bool = False
) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI descriptions of the error responses; with `protocol`, in the format of /v2."""
    problem = {"content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    body: dict[str, Any] = {"model": V2Error} if protocol else problem
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        status = PROBLEM_TYPES[kind].status
        text = (kind.__doc__ or "").splitlines()[0].rstrip(".")
        previous = responses.get(status)
        responses[status] = {
            "description": f"{previous['description']}; or: {text}" if previous else text,
            **body,
        }
        if kind in (errors.OverloadedError, errors.TooManyRequests, errors.ServiceUnavailable):
            responses[status]["headers"] = {
                "Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer"}}
            }
    return responses


def error_response(scope: Scope, error: errors.ServiceError) -> Response:
    """Return the response to a request that failed with `error`, including headers such as Retry-After."""
    is_body_unread = isinstance(error, errors.RequestBodyTooLarge | errors.RequestTimeout)
    response = _respond(scope, to_problem(error), _LingeringResponse if is_body_unread else Response)
    if isinstance(error, errors.OverloadedError | errors.TooManyRequests):
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    elif isinstance(error, errors.ServiceUnavailable):
        response.headers["Retry-After"] = str(_NOT_READY_RETRY_AFTER_S)
    elif isinstance(error, errors.Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.ServiceError)
    return error_response(request.scope, error)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    details = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return error_response(request.scope, errors.InvalidRequestError(details))


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _respond(request.scope, http_problem(error.status_code, str(error.detail)))
    response.headers.update(error.headers or {})
    return response


async def _unhandled_exception(request: Request, _: Exception) -> Response:
    # Starlette raises the exception again after this response, so that the server logs its traceback. Only
    # this response is sent outside of `ObservabilityMiddleware`, so the request id has to be added here.
    response = _respond(request.scope, http_problem(500, "internal error, see the log"))
    response.headers["X-Request-ID"] = request.scope.get("request_id", "")
    response.headers["Connection"] = "close"  # uvicorn closes the connection after an exception
    return response


def app_path(scope: Scope) -> str:
    """Return the path of a request relative to the path that the application is mounted at."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _respond(scope: Scope, problem: Problem, kind: type[Response] = Response) -> Response:
    if f"{app_path(scope)}/".startswith(f"{V2_PREFIX}/"):
        body = V2Error(error=problem.detail)
        return kind(body.model_dump_json(), problem.status, media_type="application/json")
    return kind(problem.model_dump_json(exclude_none=True), problem.status, media_type=PROBLEM_MEDIA_TYPE)


class _LingeringResponse(Response):
    """A response to a client that may still be sending: discards the rest of the body, then disconnects.

    Closing it at once would reset the connection before the client has read the response. nginx's
    lingering_close does the same.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        mark_body_discarded(scope)
        self.headers["Connection"] = "close"
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": bytes(self.body), "more_body": True})
        discarded_bytes = 0
        try:
            async with asyncio.timeout(_MAX_LINGER_S):
                while discarded_bytes < _MAX_LINGER_BYTES:
                    message = await receive()
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        break
                    discarded_bytes += len(message.get("body", b""))
        except TimeoutError:
            pass  # the client is still sending; close the connection anyway
        await send({"type": "http.response.body", "body": b"", "more_body": False})
