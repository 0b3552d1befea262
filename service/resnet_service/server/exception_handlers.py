"""Convert errors to HTTP responses: one table from error class to status, and one body format (RFC 9457).

Below /v2 the body has the format of the Open Inference Protocol.
"""

import math
import random
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import Scope

from resnet_service import errors
from resnet_service.hints import summarize_errors
from resnet_service.schemas import Problem, V2Error

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
    errors.MalformedRequest: ProblemType(400, "malformed-request"),
    errors.HeadersTooLarge: ProblemType(431, "headers-too-large"),
    errors.Unauthorized: ProblemType(401, "unauthorized"),
    errors.Forbidden: ProblemType(403, "forbidden"),
    errors.ModelNotFound: ProblemType(404, "model-not-found"),
    errors.Conflict: ProblemType(409, "conflict"),
    errors.OverloadedError: ProblemType(429, "overloaded"),
    errors.TooManyRequests: ProblemType(429, "too-many-requests"),
    errors.DeadlineExceededError: ProblemType(504, "deadline-exceeded"),
    errors.ServiceUnavailable: ProblemType(503, "service-unavailable"),
    errors.MissingDependencyError: ProblemType(501, "missing-dependency"),
    errors.UnsupportedModelError: ProblemType(501, "unsupported-model"),
    errors.ReloadError: ProblemType(500, "reload-failed"),
    errors.InferenceError: ProblemType(500, "inference-failed"),
}
"""Error classes and their HTTP form. A subclass that is not listed uses its nearest listed base class."""

AUTH_ERRORS: Final = (errors.Unauthorized, errors.Forbidden, errors.TooManyRequests)
"""The errors of routes that need an API key."""

_NOT_READY_RETRY_AFTER_S: Final = 2
_RETRY_AFTER: Final = {"Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer"}}}
_RETRYABLE: Final = (errors.OverloadedError, errors.TooManyRequests, errors.ServiceUnavailable)


def to_problem(error: errors.ServiceError) -> Problem:
    """Return the response body of an error; its message becomes the detail."""
    return Problem(**_problem_fields(type(error)), detail=str(error))


def status_of(kind: type[errors.ServiceError]) -> int:
    """Return the HTTP status of an error class."""
    return PROBLEM_TYPES[_listed(kind)].status


def _listed(kind: type[errors.ServiceError]) -> type[errors.ServiceError]:
    return next((base for base in kind.__mro__ if base in PROBLEM_TYPES), errors.InferenceError)


def _problem_fields(kind: type[errors.ServiceError]) -> dict[str, Any]:
    status, slug = PROBLEM_TYPES[_listed(kind)]
    title = slug.replace("-", " ").capitalize()
    return {"type": f"urn:resnet-service:problem:{slug}", "title": title, "status": status}


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
    """Return the OpenAPI descriptions of error responses, with an example of each error.

    With `protocol`, the bodies are in the format of the Open Inference Protocol.
    """
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        status, slug = PROBLEM_TYPES[kind]
        text = (kind.__doc__ or kind.__name__).splitlines()[0].rstrip(".")  # python -OO drops docstrings
        problem = Problem(**_problem_fields(kind), detail=text)
        media_type, schema, example = (
            ("application/json", "V2Error", {"error": text})
            if protocol
            else (PROBLEM_MEDIA_TYPE, "Problem", problem.model_dump())
        )
        response = responses.setdefault(status, {"description": text})
        if response["description"] != text:
            response["description"] += f"; or: {text}"
        content = response.setdefault("content", {}).setdefault(
            media_type, {"schema": {"$ref": f"#/components/schemas/{schema}"}, "examples": {}}
        )
        content["examples"][slug] = {"value": example}
        if kind in _RETRYABLE:
            response["headers"] = _RETRY_AFTER
    return responses


def error_response(scope: Scope, error: errors.ServiceError) -> Response:
    """Return the response to a request that failed with `error`, including headers such as Retry-After."""
    scope["timing"].fail(error)
    response = _respond(scope, to_problem(error))
    retry_after_s = retry_after(error)
    if retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    if isinstance(error, errors.Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def retry_after(error: errors.ServiceError) -> float | None:
    """Return the seconds after which the client may send the request again; None if that is of no use."""
    if isinstance(error, errors.OverloadedError) and error.reason != "memory":
        # Longer by up to a quarter: clients that are rejected at the same time must not return together.
        return error.retry_after_s * random.uniform(1, 1.25)  # noqa: S311
    if isinstance(error, errors.OverloadedError | errors.TooManyRequests):
        return error.retry_after_s
    return _NOT_READY_RETRY_AFTER_S if isinstance(error, errors.ServiceUnavailable) else None


def error_kind(error: errors.ServiceError) -> str:
    """Return the name of an error for the access log, such as "invalid-request"."""
    return PROBLEM_TYPES[_listed(type(error))].slug


def connection_error(path: str, error: errors.ServiceError) -> Response:
    """Return the response to a request that is not complete; `path` is empty if it is unknown."""
    return _respond({"path": path}, to_problem(error))


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.ServiceError)
    return error_response(request.scope, error)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(request.scope, errors.InvalidRequestError(summarize_errors(error.errors())))


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


def _respond(scope: Scope, problem: Problem) -> Response:
    scope["error_kind"] = problem.title.lower().replace(" ", "-")  # for the access log
    if f"{app_path(scope)}/".startswith(f"{V2_PREFIX}/"):
        body = V2Error(error=problem.detail)
        return Response(body.model_dump_json(), problem.status, media_type="application/json")
    return Response(problem.model_dump_json(), problem.status, media_type=PROBLEM_MEDIA_TYPE)
