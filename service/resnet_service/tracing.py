"""Trace context of requests, and spans of requests and their stages for an OpenTelemetry collector.

A request is not instrumented while it runs. Its spans are created afterwards from the measured times; they
need the extra `traces`.
"""

import socket
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import structlog
from opentelemetry.trace import (
    SpanKind,
    Status,
    StatusCode,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from resnet_service import __version__
from resnet_service.errors import MissingDependencyError

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue


_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

_RESOLVE_TIMEOUT_S: Final = 2.0
_PROPAGATOR: Final = TraceContextTextMapPropagator()


def trace_id(headers: Mapping[str, str]) -> str | None:
    """Return the trace id, 32 hexadecimal digits, of a request's `traceparent`; None without a valid one."""
    context = get_current_span(_PROPAGATOR.extract(headers)).get_span_context()
    return format_trace_id(context.trace_id) if context.is_valid else None


def check_collector(endpoint: str) -> None:
    """Log a warning if the host of a collector cannot be resolved now; waits at most two seconds."""
    host = urlsplit(endpoint).hostname
    errors: list[OSError | UnicodeError] = []
    lookup = threading.Thread(target=_resolve, args=(host, errors), name="resolve collector", daemon=True)
    lookup.start()
    lookup.join(_RESOLVE_TIMEOUT_S)
    if errors or lookup.is_alive():
        reason = str(errors[0]) if errors else "no response from the name server"
        _log.warning("collector_not_resolved", host=host, reason=reason)


def _resolve(host: str, errors: list[OSError | UnicodeError]) -> None:
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:  # UnicodeError: not encodable as a host name
        errors.append(error)


class RequestTracer:
    """Sends spans to one collector, in batches from a background thread, until `close`.

    The caller's `traceparent` decides about sampling; without one, OTEL_TRACES_SAMPLER does. Headers and time
    limits are set by OTEL_EXPORTER_OTLP_HEADERS and OTEL_EXPORTER_OTLP_TIMEOUT.
    """

    def __init__(self, endpoint: str) -> None:
        """Create an exporter to `endpoint`, an OTLP/HTTP URL; it connects with the first span.

        Raises MissingDependencyError if the extra `traces` is not installed.
        """
        try:  # other packages may have installed a part of the extra
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as error:
            message = "traces need OpenTelemetry: make install EXTRAS=traces"
            raise MissingDependencyError(message) from error

        resource = Resource.create({SERVICE_NAME: "resnet-service", SERVICE_VERSION: __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("resnet_service")

    def record(
        self,
        name: str,
        attributes: Mapping[str, "AttributeValue"],
        stages: Sequence[tuple[str, float, float]],
        *,
        headers: Mapping[str, str],
        started_at_ns: int,
        seconds: float,
        has_failed: bool,
    ) -> None:
        """Export the span of a request, with one child span per stage.

        `stages` are names with the start and end in seconds after the start of the request. `headers` may
        contain the caller's traceparent. `started_at_ns` is in nanoseconds since the Unix epoch.
        """
        parent = _PROPAGATOR.extract(headers)
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, attributes, start_time=started_at_ns)
        context = set_span_in_context(span)
        for stage, start_s, end_s in stages:
            child = self._tracer.start_span(stage, context, start_time=started_at_ns + round(start_s * 1e9))
            child.end(started_at_ns + round(end_s * 1e9))
        if has_failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(started_at_ns + round(seconds * 1e9))

    def close(self, timeout_s: float) -> None:
        """Export the remaining spans; those that the collector has not taken after `timeout_s` are lost.

        The exporter itself would try for 10 s and cannot be interrupted, so that its thread is left behind.
        """
        export = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        export.start()
        export.join(timeout_s)
        if export.is_alive():
            _log.warning("last_spans_lost", timeout_s=timeout_s)
