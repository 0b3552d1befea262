"""Errors over HTTP: one table from error to status, one body shape (RFC 9457), and who writes it.

Under /v2 the body is the Open Inference Protocol's.
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
"""Where the Open Inference Protocol is spoken."""


class ProblemType(NamedTuple):
    """How an error appears over HTTP: its status, and the last part of its type URI."""

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
"""The one table from error to HTTP. A subclass that is not listed appears as its nearest listed base."""

_NOT_READY_RETRY_S: Final = 2
# How long, and how much, a rejected upload is still read, so that the client reads the answer instead of
# finding its connection reset.
_LINGER_S: Final = 2.0
_LINGER_BYTES: Final = 64 * 2**20


def to_problem(error: errors.ServiceError) -> Problem:
    """Describe an error by the nearest class in the table; its message was written for the caller."""
    kind = next((kind for kind in type(error).__mro__ if kind in PROBLEM_TYPES), errors.InferenceError)
    status, slug = PROBLEM_TYPES[kind]
    return Problem(
        type=f"urn:resnet-service:problem:{slug}",
        title=slug.replace("-", " ").capitalize(),
        status=status,
        detail=str(error),
    )


def http_problem(status: int, detail: str) -> Problem:
    """Describe an error that is HTTP's own."""
    return Problem(type="about:blank", title=HTTPStatus(status).phrase, status=status, detail=detail)


def add_exception_handlers(app: FastAPI) -> None:
    """Make every error that leaves a route a problem, the framework's own included."""
    app.add_exception_handler(errors.ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Exception, _unhandled_exception)


def openapi_responses(
    *kinds: type[errors.ServiceError], protocol: bool = False
) -> dict[int | str, dict[str, Any]]:
    """Describe for OpenAPI the answers that these errors become, under /v2 where `protocol`."""
    problem = {"content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    body: dict[str, Any] = {"model": V2Error} if protocol else problem
    described: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        text = (kind.__doc__ or "").splitlines()[0].rstrip(".")
        earlier = described.get(PROBLEM_TYPES[kind].status)
        description = f"{earlier['description']}; or: {text}" if earlier else text
        described[PROBLEM_TYPES[kind].status] = {"description": description, **body}
        if kind in (errors.OverloadedError, errors.TooManyRequests, errors.ServiceUnavailable):
            described[PROBLEM_TYPES[kind].status]["headers"] = {
                "Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer"}}
            }
    return described


def error_response(scope: Scope, error: errors.ServiceError) -> Response:
    """Make the answer that an error becomes, with the headers that belong to it."""
    unread = isinstance(error, errors.RequestBodyTooLarge | errors.RequestTimeout)
    response = _respond(scope, to_problem(error), _LingeringResponse if unread else Response)
    if isinstance(error, errors.OverloadedError | errors.TooManyRequests):
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    elif isinstance(error, errors.ServiceUnavailable):
        response.headers["Retry-After"] = str(_NOT_READY_RETRY_S)
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
    # Starlette raises it again after this answer, so the server logs it with its traceback. Only here is
    # the answer written outside `ObservabilityMiddleware`, which has left the request's id behind.
    response = _respond(request.scope, http_problem(500, "the log has its traceback"))
    response.headers["X-Request-ID"] = request.scope.get("request_id", "")
    response.headers["Connection"] = "close"  # as uvicorn will, after an error that it sees
    return response


def app_path(scope: Scope) -> str:
    """Return a request's path below where the application is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _respond(scope: Scope, problem: Problem, kind: type[Response] = Response) -> Response:
    if f"{app_path(scope)}/".startswith(f"{V2_PREFIX}/"):
        body = V2Error(error=problem.detail)
        return kind(body.model_dump_json(), problem.status, media_type="application/json")
    return kind(problem.model_dump_json(exclude_none=True), problem.status, media_type=PROBLEM_MEDIA_TYPE)


class _LingeringResponse(Response):
    """Answer while the client may still be sending: reads on for a moment, then closes the connection.

    Closing at once would reset the connection with the answer unread; nginx's lingering_close does the same.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        mark_body_discarded(scope)
        self.headers["Connection"] = "close"
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": bytes(self.body), "more_body": True})
        discarded = 0
        try:
            async with asyncio.timeout(_LINGER_S):
                while discarded < _LINGER_BYTES:
                    message = await receive()
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        break
                    discarded += len(message.get("body", b""))
        except TimeoutError:
            pass  # it had its moment
        await send({"type": "http.response.body", "body": b"", "more_body": False})
