"""Spans of requests and their stages for an OpenTelemetry collector; an extra of the package.

Nothing is traced while a request runs: its spans are made from the times that were measured anyway.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from resnet_service import __version__
from resnet_service.errors import MissingDependencyError

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue


class RequestTracer:
    """Sends spans to one collector, in batches from a thread of its own, until `close`.

    Sampling follows the caller's `traceparent`, and without one OpenTelemetry's own variables
    (OTEL_TRACES_SAMPLER); so do headers and time limits (OTEL_EXPORTER_OTLP_HEADERS, ..._TIMEOUT).
    """

    def __init__(self, endpoint: str) -> None:
        """Prepare to send to `endpoint`, the URL of OTLP over HTTP, which is not asked yet.

        Raises MissingDependencyError where the extra `traces` is not installed.
        """
        if find_spec("opentelemetry") is None:
            raise MissingDependencyError("traces need OpenTelemetry: pip install 'resnet-service[traces]'")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({SERVICE_NAME: "resnet-service", SERVICE_VERSION: __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("resnet_service")

    def record(
        self,
        name: str,
        attributes: Mapping[str, "AttributeValue"],
        stages: Mapping[str, float],
        *,
        headers: Mapping[str, str],
        began_ns: int,
        seconds: float,
    ) -> None:
        """Send a request's span and, under it, one for each stage, whose seconds follow each other.

        `headers` may hold the caller's traceparent; `began_ns` is in nanoseconds since 1970.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(headers)
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, attributes, start_time=began_ns)
        inside, at_ns = set_span_in_context(span), began_ns
        for stage, took in stages.items():
            child = self._tracer.start_span(stage, inside, start_time=at_ns)
            at_ns += round(took * 1e9)
            child.end(at_ns)
        if int(str(attributes.get("http.response.status_code", 0))) >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(began_ns + round(seconds * 1e9))

    def close(self) -> None:
        """Send what is left; this blocks, for the exporter's time limit where nobody answers."""
        self._provider.shutdown()
