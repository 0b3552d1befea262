"""ASGI middleware around all routes: request id, Server-Timing, metrics, spans, access log, and HEAD."""

import time
from collections.abc import Callable
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resnet_service.inference.request_timing import RequestTiming
from resnet_service.inference.statistics import RequestCounters
from resnet_service.metrics import Metrics
from resnet_service.models import ModelVersion
from resnet_service.server.exception_handlers import app_path
from resnet_service.server.request_recorder import RequestRecord, RequestRecorder
from resnet_service.settings import Settings
from resnet_service.tracing import RequestTracer

_MONITORING_PATHS: Final = frozenset(
    {"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"}
)
_INFERENCE_ROUTES: Final = frozenset({"predict", "predict_batch", "embed", "infer"})
"""The names of the routes that run images on a device."""
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
    (FastAPI), "api_key_name" (`resnet_service.server.auth`), "model" and "priority"
    (`resnet_service.server.admission`), and "error_kind" (the exception handlers).
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        counters: Callable[[ModelVersion], RequestCounters],
        tracer: RequestTracer | None,
        settings: Settings,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._recorder = RequestRecorder(metrics, counters, tracer, settings)
        self._skipped_paths = frozenset() if settings.access_log_probes else _MONITORING_PATHS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        ids = self._recorder.ids(headers)
        request_id = scope["request_id"] = ids["request_id"]
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
                self._record(scope, status, headers, ids, started_at_ns, bytes_in, bytes_out)

    def _record(
        self,
        scope: Scope,
        status: int,
        headers: Headers,
        ids: dict[str, str],
        started_at_ns: int,
        bytes_in: int,
        bytes_out: int,
    ) -> None:
        method = scope["method"] if scope["method"] in _METHODS else _OTHER_METHOD
        timing: RequestTiming = scope["timing"]
        route, seconds, trace = _route(scope), timing.total_s, ids.get("trace_id")
        duration = self._metrics.request_seconds.labels(route, method, str(status))
        duration.observe(seconds, None if trace is None else {"trace_id": trace})
        path, client = app_path(scope), scope.get("client")
        record = RequestRecord(
            method=scope["method"],
            route=route,
            path=path,
            status=status,
            http_status=status,
            is_inference=_is_inference(scope),
            timing=timing,
            seconds=seconds,
            started_at_ns=started_at_ns,
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            headers=headers,
            attributes={
                "http.request.method": scope["method"],
                "http.route": route,
                "http.response.status_code": status,
                "request.id": ids["request_id"],
                "http.request.body.size": bytes_in,
                "http.response.body.size": bytes_out,
            },
            client=client[0] if client else None,
            key=scope.get("api_key_name"),
            model=scope.get("model"),
            priority=scope.get("priority"),
            error=scope.get("error_kind"),
        )
        self._recorder.record(record, is_logged=path not in self._skipped_paths)


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


def _is_inference(scope: Scope) -> bool:
    return scope["method"] == "POST" and getattr(scope.get("route"), "name", None) in _INFERENCE_ROUTES
