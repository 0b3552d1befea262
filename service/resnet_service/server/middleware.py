"""What happens around every request: its id, its trace, its metrics, its line in the log."""

import re
import time
from random import getrandbits
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resnet_service.metrics import Metrics
from resnet_service.tracing import RequestTracer

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger("resnet_service.access")
_SAFE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# https://www.w3.org/TR/trace-context/#traceparent-header; an id of zeros is invalid.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
CLIENT_CLOSED: Final = 499
"""The status recorded for a request whose client hung up; nobody is there to receive it (nginx's number)."""


class ObservabilityMiddleware:
    """ASGI middleware around the routes: request id, trace id, time, status and sizes, and the access log.

    A client's X-Request-ID is kept where it is harmless, and every answer carries one. The trace id of its
    `traceparent` is in each line of the log and is the exemplar of the request's time. A route may leave the
    seconds of its stages in scope["stages"].
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
        given = headers.get("x-request-id", "")
        scope["request_id"] = request_id = given if _SAFE_ID.fullmatch(given) else f"{getrandbits(128):032x}"
        trace = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
        ids = {"request_id": request_id} | ({"trace_id": trace[1]} if trace else {})
        status = 500  # what an exception that passes here becomes, outside this middleware
        received = sent = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            sent += len(message.get("body", b""))
            await send(message)

        began_ns, started = time.time_ns(), time.perf_counter()
        with structlog.contextvars.bound_contextvars(**ids):
            try:
                await self._app(scope, receive_counted, send_with_id)
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
                            "http.request.body.size": received,
                            "http.response.body.size": sent,
                            "request.id": request_id,
                        },
                        stages,
                        headers=headers,
                        began_ns=began_ns,
                        seconds=seconds,
                    )
                if self._access_log:
                    _log.info(
                        "request",
                        method=scope["method"],
                        route=route,
                        status=status,
                        bytes_in=received,
                        bytes_out=sent,
                        ms=_ms(seconds),
                        **{f"{stage}_ms": _ms(took) for stage, took in stages.items()},
                    )


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)
