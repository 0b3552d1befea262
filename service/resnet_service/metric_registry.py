"""A registry of Prometheus metrics: gauges that report the value of a function, and the text of a scrape."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder


class MetricRegistry:
    """The metrics of a process and of its Python; those of the application are added to `registry`.

    In an HTTP worker, the values are in files that the main process adds up (prometheus_client's multiprocess
    mode, which the variable PROMETHEUS_MULTIPROC_DIR selects); `refresh` has to be called there.
    """

    def __init__(self, *, in_worker: bool = False) -> None:
        self._reported: dict[Gauge, Callable[[], float]] | None = {} if in_worker else None
        disable_created_metrics()  # a `_created` series per counter, which no dashboard or alert uses
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)

    def report(self, gauge: Gauge, function: Callable[[], float]) -> None:
        """Make a gauge have the value of a function: at each scrape, or in a worker at each `refresh`."""
        if self._reported is None:
            gauge.set_function(function)
        else:
            self._reported[gauge] = function

    def refresh(self) -> None:
        """Set the gauges of a worker: a scrape of the main process reads their files only."""
        for gauge, function in (self._reported or {}).items():
            gauge.set(function())

    def render(self, accept: str, registry: CollectorRegistry | None = None) -> tuple[bytes, str]:
        """Return all metrics and their content type: Prometheus text, or OpenMetrics if `accept` names it.

        `accept` is the value of a header `Accept`; `registry` replaces that of this process.
        """
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # an invalid version in Accept
            encode, content_type = choose_encoder("")
        return encode(registry or self.registry), content_type


def unbind(gauge: Gauge) -> None:
    """Release what the function of a gauge refers to.

    A gauge and its function refer to each other: without this, the memory of a model that was unloaded would
    wait for the garbage collector, which comes late, and never to objects from before the start.
    """
    gauge.set_function(float)
