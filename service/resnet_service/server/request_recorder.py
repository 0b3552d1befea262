"""Record finished requests, of HTTP and of gRPC: stages, images, span and access log."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from resnet_service.inference.request_timing import RequestTiming
from resnet_service.inference.statistics import RequestCounters
from resnet_service.metrics import Metrics
from resnet_service.models import ModelVersion
from resnet_service.server.connection_errors import new_request_id
from resnet_service.server.model_metrics import ModelMetrics
from resnet_service.settings import Settings
from resnet_service.tracing import RequestTracer, trace_id

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger("resnet_service.access")
_SAFE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_MAX_LOGGED_PATH: Final = 200


@dataclass(slots=True)
class RequestRecord:
    """One finished request.

    status: what the client got: a status of HTTP, or the name of one of gRPC.
    http_status: the status of HTTP for the same outcome.
    is_inference: whether its images count.
    attributes: those of its span.
    client, key: the address of the client, and the name of its API key.
    model: the version of the model that answers, if the request came that far.
    priority, error: the priority if it is not the usual one, and the kind of the error.
    """

    method: str
    route: str
    path: str
    status: int | str
    http_status: int
    is_inference: bool
    timing: RequestTiming
    seconds: float
    started_at_ns: int
    bytes_in: int
    bytes_out: int
    headers: Mapping[str, str]
    attributes: Mapping[str, str | int]
    client: str | None = None
    key: str | None = None
    model: ModelVersion | None = None
    priority: str | None = None
    error: str | None = None


class RequestRecorder:
    """Records the requests of one application.

    recorder = RequestRecorder(metrics, counters, tracer, settings)
    with structlog.contextvars.bound_contextvars(**recorder.ids(headers)):
        ...
        recorder.record(RequestRecord(...), is_logged=True)
    """

    def __init__(
        self,
        metrics: Metrics,
        counters: Callable[[ModelVersion], RequestCounters],
        tracer: RequestTracer | None,
        settings: Settings,
    ) -> None:
        self._model_metrics = ModelMetrics(metrics, counters)
        self._tracer = tracer
        self._access_log = settings.access_log

    def ids(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return what the log lines of a request have: `request_id`, and `trace_id` if it has a trace.

        The client's X-Request-ID is kept if it is safe to log. The names in `headers` are in lower case.
        """
        client_id = headers.get("x-request-id", "")
        ids = {"request_id": client_id if _SAFE_ID.fullmatch(client_id) else new_request_id()}
        if "traceparent" in headers and (trace := trace_id(headers)) is not None:
            ids["trace_id"] = trace
        return ids

    def record(self, record: RequestRecord, *, is_logged: bool) -> None:
        """Record a request; `is_logged` says whether it is one for the access log."""
        if record.is_inference:
            self._model_metrics.count(record.model, record.http_status, record.timing)
        if self._tracer is not None:
            self._trace(self._tracer, record)
        if self._access_log and is_logged:
            _log_access(record)

    def _trace(self, tracer: RequestTracer, record: RequestRecord) -> None:
        timing, attributes = record.timing, record.attributes
        if record.model is not None:
            attributes = {
                **attributes,
                "model.name": record.model.name,
                "model.version": record.model.version,
            }
        tracer.record(
            f"{record.method} {record.route}",
            attributes,
            [
                (stage, start - timing.started, end - timing.started)
                for stage, start, end in timing.intervals()
            ],
            headers=record.headers,
            started_at_ns=record.started_at_ns,
            seconds=record.seconds,
            has_failed=record.http_status >= 500,
        )


def _log_access(record: RequestRecord) -> None:
    fields = {
        "error": record.error,
        "client": record.client,
        "key": record.key,
        "priority": record.priority,
        "model": record.model and record.model.name,
        "version": record.model and record.model.version,
    }
    _log.info(
        "request",
        status=record.status,
        method=record.method,
        route=record.route,
        path=record.path[:_MAX_LOGGED_PATH],
        ms=_ms(record.seconds),
        **{f"{stage}_ms": _ms(end - start) for stage, start, end in record.timing.intervals()},
        **{name: value for name, value in fields.items() if value is not None},
        bytes_in=record.bytes_in,
        bytes_out=record.bytes_out,
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)
