"""Errors over HTTP: one table from error to status, one body shape (RFC 9457), and who writes it.

Under /v2 the body is the Open Inference Protocol's.
"""

import asyncio
import math
import re
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from service import errors
from service.api.uploads import discard
from service.schemas import Problem, ProtocolError

MEDIA_TYPE: Final = "application/problem+json"
PROTOCOL: Final = "/v2"
"""Where the Open Inference Protocol is spoken."""

STATUS: Final[dict[type[errors.ServiceError], int]] = {
    errors.InvalidRequest: 422,
    errors.InvalidImage: 422,
    errors.UnsupportedMedia: 415,
    errors.PayloadTooLarge: 413,
    errors.ReadTimeout: 408,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.Busy: 409,
    errors.Overloaded: 429,
    errors.RateLimited: 429,
    errors.DeadlineExceeded: 504,
    errors.NotReady: 503,
    errors.ReloadFailed: 500,
    errors.InferenceFailed: 500,
}

_NOT_READY_RETRY_S: Final = 2
# How long, and how much, a refused upload is still read, so that the client reads the answer instead of
# finding its connection reset.
_LINGER_S: Final = 2.0
_LINGER_BYTES: Final = 64 * 2**20


def problem_of(error: errors.ServiceError) -> Problem:
    """Describe an error by the nearest class in the table; its message was written for the caller."""
    kind = next((kind for kind in type(error).__mro__ if kind in STATUS), errors.InferenceFailed)
    words = re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()
    return Problem(
        type=f"urn:resnet-service:problem:{words}",
        title=words.replace("-", " ").capitalize(),
        status=STATUS[kind],
        detail=str(error),
    )


def plain(status: int, detail: str) -> Problem:
    """Describe an error that is HTTP's own."""
    return Problem(type="about:blank", title=HTTPStatus(status).phrase, status=status, detail=detail)


def install(app: FastAPI) -> None:
    """Make every error that leaves a route a problem, the framework's own included."""
    app.add_exception_handler(errors.ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Exception, _unexpected)


def responses(*kinds: type[errors.ServiceError], protocol: bool = False) -> dict[int | str, dict[str, Any]]:
    """Describe for OpenAPI the answers that these errors become, under /v2 where `protocol`."""
    problem = {"content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    body: dict[str, Any] = {"model": ProtocolError} if protocol else problem
    described: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        text = (kind.__doc__ or "").splitlines()[0].rstrip(".")
        earlier = described.get(STATUS[kind])
        description = f"{earlier['description']}; or: {text}" if earlier else text
        described[STATUS[kind]] = {"description": description, **body}
        if kind in (errors.Overloaded, errors.RateLimited, errors.NotReady):
            described[STATUS[kind]]["headers"] = {
                "Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer"}}
            }
    return described


def answer(scope: Scope, error: errors.ServiceError) -> Response:
    """Make the answer that an error becomes, with the headers that belong to it."""
    unread = isinstance(error, errors.BodyTooLarge | errors.ReadTimeout)
    response = _respond(scope, problem_of(error), _RefusedUpload if unread else Response)
    if isinstance(error, errors.Overloaded | errors.RateLimited):
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    elif isinstance(error, errors.NotReady):
        response.headers["Retry-After"] = str(_NOT_READY_RETRY_S)
    elif isinstance(error, errors.Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.ServiceError)
    return answer(request.scope, error)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    details = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return answer(request.scope, errors.InvalidRequest(details))


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _respond(request.scope, plain(error.status_code, str(error.detail)))
    response.headers.update(error.headers or {})
    return response


async def _unexpected(request: Request, _: Exception) -> Response:
    # Starlette raises it again after this answer, so the server logs it with its traceback. Only here is
    # the answer written outside `Observe`, which has left the request's id behind.
    response = _respond(request.scope, plain(500, "the log has its traceback"))
    response.headers["X-Request-ID"] = request.scope.get("request_id", "")
    response.headers["Connection"] = "close"  # as uvicorn will, after an error that it sees
    return response


def path_of(scope: Scope) -> str:
    """Return a request's path below where the application is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _respond(scope: Scope, problem: Problem, kind: type[Response] = Response) -> Response:
    if f"{path_of(scope)}/".startswith(f"{PROTOCOL}/"):
        body = ProtocolError(error=problem.detail)
        return kind(body.model_dump_json(), problem.status, media_type="application/json")
    return kind(problem.model_dump_json(exclude_none=True), problem.status, media_type=MEDIA_TYPE)


class _RefusedUpload(Response):
    """Answer while the client may still be sending: reads on for a moment, then closes the connection.

    Closing at once would reset the connection with the answer unread; nginx's lingering_close does the same.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        discard(scope)
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
