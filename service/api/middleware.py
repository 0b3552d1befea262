"""What happens around every request: its id, its metrics, its line in the log."""

import re
import time
from typing import Final
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger("service.access")
_SAFE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
CLIENT_CLOSED: Final = 499
"""The status recorded for a request whose client hung up; nobody is there to receive it (nginx's number)."""


class Observe:
    """ASGI middleware around the routes: a request id, the time and status of each request, the access log.

    A client's X-Request-ID is kept where it is harmless, and every answer carries one.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, access_log: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        scope["request_id"] = request_id = given if _SAFE_ID.fullmatch(given) else uuid4().hex
        status = 500  # what an exception that passes here becomes, outside this middleware

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        started = time.perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                seconds = time.perf_counter() - started
                route = getattr(scope.get("route"), "path", "unmatched")
                self._metrics.request_seconds.labels(route, scope["method"], str(status)).observe(seconds)
                if self._access_log:
                    _log.info(
                        "request",
                        method=scope["method"],
                        route=route,
                        status=status,
                        ms=round(seconds * 1e3, 2),
                    )
