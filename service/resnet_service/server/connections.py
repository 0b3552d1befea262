"""All open connections of a server: how many there may be, and which of them wait for their client."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from resnet_service.metrics import Metrics

if TYPE_CHECKING:
    from resnet_service.server.http_protocol import HTTPConnection

Reason = Literal["limit", "header_timeout", "header_too_large", "malformed", "pipelined", "write_timeout"]
"""Why a connection is ended."""


@dataclass(eq=False)
class ConnectionRegistry:
    """The open connections, with their limits; times are in seconds.

    Where more than `limit` are open, the one that has gone longest without a whole request makes room, so
    that neither idle nor slow clients keep others out.
    """

    metrics: Metrics
    limit: int
    header_timeout_s: float
    body_timeout_s: float
    open: int = 0
    idle: "OrderedDict[HTTPConnection, None]" = field(default_factory=OrderedDict)

    def record_closed(self, reason: Reason) -> None:
        """Count one that is ended for what it did."""
        self.metrics.connections_rejected.labels(reason).inc()
