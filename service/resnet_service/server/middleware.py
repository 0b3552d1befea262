"""ASGI middleware around all routes: observability, authentication, and the memory of request bodies."""

import re
import time
from random import getrandbits
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resnet_service.errors import ServiceError
from resnet_service.metrics import Metrics
from resnet_service.server.exception_handlers import app_path, error_response
from resnet_service.server.state import AppState
from resnet_service.server.uploads import UploadMemory, is_body_discarded
from resnet_service.tracing import RequestTracer

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger("resnet_service.access")
_SAFE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# https://www.w3.org/TR/trace-context/#traceparent-header; an id of zeros is invalid.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
CLIENT_CLOSED: Final = 499
"""The status recorded for a request whose client disconnected; no client receives it (nginx's number)."""


class ObservabilityMiddleware:
    """Records each request: request id, trace, metrics and access log. The outermost middleware.

    A client's X-Request-ID is kept if it is safe to log; otherwise a new one is generated. All responses have
    it, and so have all log lines of the request. The trace id of `traceparent` is in the log lines as well,
    and is the exemplar of the request's duration. A route may store the durations of its stages, in seconds,
    in scope["stages"].
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, tracer: RequestTracer | None, access_log: bool
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._tracer = tracer
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        client_id = headers.get("x-request-id", "")
        request_id = client_id if _SAFE_ID.fullmatch(client_id) else f"{getrandbits(128):032x}"
        scope["request_id"] = request_id
        trace = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
        ids = {"request_id": request_id} | ({"trace_id": trace[1]} if trace else {})
        status = 500  # an exception that passes this middleware becomes a 500 outside of it
        bytes_in = bytes_out = 0

        async def receive_and_count() -> Message:
            nonlocal bytes_in
            message = await receive()
            bytes_in += len(message.get("body", b""))
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status, bytes_out
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            bytes_out += len(message.get("body", b""))
            await send(message)

        started_at_ns, started = time.time_ns(), time.perf_counter()
        with structlog.contextvars.bound_contextvars(**ids):
            try:
                await self._app(scope, receive_and_count, send_with_id)
            finally:
                seconds = time.perf_counter() - started
                route = getattr(scope.get("route"), "path", "unmatched")
                timer = self._metrics.request_seconds.labels(route, scope["method"], str(status))
                timer.observe(seconds, {"trace_id": trace[1]} if trace else None)
                stages: dict[str, float] = scope.get("stages", {})
                if self._tracer is not None:
                    self._tracer.record(
                        f"{scope['method']} {route}",
                        {
                            "http.request.method": scope["method"],
                            "http.route": route,
                            "http.response.status_code": status,
                            "http.request.body.size": bytes_in,
                            "http.response.body.size": bytes_out,
                            "request.id": request_id,
                        },
                        stages,
                        headers=headers,
                        started_at_ns=started_at_ns,
                        seconds=seconds,
                    )
                if self._access_log:
                    _log.info(
                        "request",
                        method=scope["method"],
                        route=route,
                        status=status,
                        bytes_in=bytes_in,
                        bytes_out=bytes_out,
                        ms=_ms(seconds),
                        **{f"{stage}_ms": _ms(stage_s) for stage, stage_s in stages.items()},
                    )


class AuthMiddleware:
    """Rejects requests whose API key does not permit their path, before anything of the body is read."""

    def __init__(self, app: ASGIApp, state: AppState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            try:
                # From the state for each request, because a reload replaces the keys.
                self._state.api_keys.check(app_path(scope), Headers(scope=scope))
            except ServiceError as error:
                await error_response(scope, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class UploadMemoryMiddleware:
    """Counts the bytes of a request body as used upload memory from their arrival to the response.

    Reading more than the limit of all requests raises OverloadedError in the route that reads.
    """

    def __init__(self, app: ASGIApp, memory: UploadMemory) -> None:
        self._app = app
        self._memory = memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        used = 0

        async def receive_and_acquire() -> Message:
            nonlocal used
            message = await receive()
            size = len(message.get("body", b""))
            if size and not is_body_discarded(scope):
                self._memory.acquire(size)
                used += size
            return message

        try:
            await self._app(scope, receive_and_acquire, send)
        finally:
            self._memory.release(used)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)
