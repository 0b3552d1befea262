"""ASGI middleware around all routes: request id, Server-Timing, metrics, spans, access log, and HEAD."""

import re
import time
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resnet_service.inference.request_timing import STAGES, RequestTiming
from resnet_service.inference.statistics import RequestCounters
from resnet_service.metrics import Metrics
from resnet_service.server.connection_errors import new_request_id
from resnet_service.server.exception_handlers import app_path
from resnet_service.server.image_counter import ImageCounter
from resnet_service.settings import Settings
from resnet_service.tracing import RequestTracer, trace_id

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger("resnet_service.access")
_SAFE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_MONITORING_PATHS: Final = frozenset(
    {"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"}
)
_MAX_LOGGED_PATH: Final = 200
_METHODS: Final = frozenset({"GET", "POST", "OPTIONS"})
_OTHER_METHOD: Final = "_OTHER"
"""The label of all other methods: a client could create a series for each of 34. OpenTelemetry's value."""
_UNMATCHED: Final = "unmatched"


class ObservabilityMiddleware:
    """Records each request: request id, timing, metrics, spans and access log.

    A client's X-Request-ID is kept if it is safe to log; otherwise a new one is generated. All responses have
    it, and so have all log lines of the request. The trace id of `traceparent` is in the log lines as well,
    and is the exemplar of the request's duration.

    Stores the request's `RequestTiming` in scope["timing"]. Reads what others leave in the scope: "route"
    (FastAPI), "api_key_name" (`resnet_service.server.auth`) and "error_kind" (the exception handlers).
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        counters: RequestCounters,
        tracer: RequestTracer | None,
        settings: Settings,
    ) -> None:
        self._app = app
        self._metrics = metrics
        # Each call of `labels` takes 1 us.
        self._stage_seconds = {stage: metrics.stage_seconds.labels(stage) for stage in STAGES}
        self._image_counter = ImageCounter(metrics, counters)
        self._tracer = tracer
        self._access_log = settings.access_log
        self._skipped_paths = frozenset() if settings.access_log_probes else _MONITORING_PATHS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        client_id = headers.get("x-request-id", "")
        request_id = client_id if _SAFE_ID.fullmatch(client_id) else new_request_id()
        scope["request_id"] = request_id
        ids = {"request_id": request_id}
        if "traceparent" in headers and (trace := trace_id(headers)) is not None:
            ids["trace_id"] = trace
        timing = scope["timing"] = RequestTiming()
        started_at_ns = time.time_ns()
        status = 500  # an exception that passes this middleware becomes a 500 outside of it
        bytes_in = bytes_out = 0

        async def receive_and_count() -> Message:
            nonlocal bytes_in
            message = await receive()
            bytes_in += len(message.get("body", b""))
            return message

        async def send_with_headers(message: Message) -> None:
            nonlocal status, bytes_out
            if message["type"] == "http.response.start":
                status = message["status"]
                response_headers = MutableHeaders(scope=message)
                response_headers["X-Request-ID"] = request_id
                if timing.has_stages:
                    response_headers["Server-Timing"] = timing.server_timing()
            bytes_out += len(message.get("body", b""))
            await send(message)

        with structlog.contextvars.bound_contextvars(**ids):
            try:
                await self._app(scope, receive_and_count, send_with_headers)
            finally:
                seconds = timing.total_s
                self._observe(scope, status, seconds, timing, ids.get("trace_id"))
                if self._tracer is not None:
                    sizes = {"http.request.body.size": bytes_in, "http.response.body.size": bytes_out}
                    self._trace(self._tracer, scope, status, sizes, headers, started_at_ns, seconds)
                if self._access_log and app_path(scope) not in self._skipped_paths:
                    self._log_access(scope, status, bytes_in, bytes_out, seconds, timing)

    def _observe(
        self, scope: Scope, status: int, seconds: float, timing: RequestTiming, trace: str | None
    ) -> None:
        method = scope["method"] if scope["method"] in _METHODS else _OTHER_METHOD
        duration = self._metrics.request_seconds.labels(_route(scope), method, str(status))
        duration.observe(seconds, None if trace is None else {"trace_id": trace})
        for stage, stage_s in timing.observations():
            self._stage_seconds[stage].observe(stage_s)
        self._image_counter.count(scope, status, timing)

    def _trace(
        self,
        tracer: RequestTracer,
        scope: Scope,
        status: int,
        sizes: dict[str, int],
        headers: Headers,
        started_at_ns: int,
        seconds: float,
    ) -> None:
        timing: RequestTiming = scope["timing"]
        tracer.record(
            f"{scope['method']} {_route(scope)}",
            {
                "http.request.method": scope["method"],
                "http.route": _route(scope),
                "http.response.status_code": status,
                "request.id": scope["request_id"],
                **sizes,
            },
            [
                (stage, start - timing.started, end - timing.started)
                for stage, start, end in timing.intervals()
            ],
            headers=headers,
            started_at_ns=started_at_ns,
            seconds=seconds,
        )

    def _log_access(
        self,
        scope: Scope,
        status: int,
        bytes_in: int,
        bytes_out: int,
        seconds: float,
        timing: RequestTiming,
    ) -> None:
        client = scope.get("client")
        fields = {
            "error": scope.get("error_kind"),
            "client": client[0] if client else None,
            "key": scope.get("api_key_name"),
            "priority": scope.get("priority"),
        }
        _log.info(
            "request",
            status=status,
            method=scope["method"],
            route=_route(scope),
            path=app_path(scope)[:_MAX_LOGGED_PATH],
            ms=_ms(seconds),
            **{f"{stage}_ms": _ms(end - start) for stage, start, end in timing.intervals()},
            **{name: value for name, value in fields.items() if value is not None},
            bytes_in=bytes_in,
            bytes_out=bytes_out,
        )


class HeadMiddleware:
    """Handles HEAD as GET, because load balancers and `curl -I` check with it; the server omits the body.

    FastAPI responds with 405 to HEAD on a route for GET. Outside of `ObservabilityMiddleware`, which records
    the request as GET.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        as_get = {**scope, "method": "GET"}  # a copy: the server reads the method from its own
        try:
            await self._app(as_get, receive, send)
        finally:
            scope["request_id"] = as_get.get("request_id", "")  # for the response to an unexpected exception


def _route(scope: Scope) -> str:
    """Return the path of the route that handles the request, with its parameters not replaced.

    A route that has the path but not the method does not: a client could create a series for each of both.
    """
    route = scope.get("route")
    return route.path if route is not None and scope["method"] in route.methods else _UNMATCHED


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)
