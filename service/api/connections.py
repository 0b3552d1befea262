"""All open connections of a server: how many there may be, and which of them wait for their client."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from service.metrics import Metrics

if TYPE_CHECKING:
    from service.api.connection import Connection

Reason = Literal["limit", "head_late", "head_large", "malformed", "pipelined", "unread"]
"""Why a connection is ended."""


@dataclass(eq=False)
class Connections:
    """The open connections, with their limits; times are in seconds.

    Where more than `limit` are open, the one that has gone longest without a whole request makes room, so
    that neither idle nor slow clients keep others out.
    """

    metrics: Metrics
    limit: int
    head_timeout_s: float
    body_timeout_s: float
    open: int = 0
    idle: "OrderedDict[Connection, None]" = field(default_factory=OrderedDict)

    def ended(self, reason: Reason) -> None:
        """Count one that is ended for what it did."""
        self.metrics.connections_refused.labels(reason).inc()
