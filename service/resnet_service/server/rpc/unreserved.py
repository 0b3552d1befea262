"""A request whose model is not known yet, because its name is in the message."""

import asyncio

from resnet_service.batching import Lane


class Unreserved:
    """What a call needs of a reservation until its message has arrived: a lane and a deadline.

    Nothing limits how many of them there are: the upload memory and the limit on messages that are received
    at the same time do.
    """

    def __init__(self, lane: Lane, timeout_s: float) -> None:
        self.lane = lane
        self.deadline: float = asyncio.get_running_loop().time() + timeout_s

    async def start(self) -> None:
        """Start at once."""

    def suspend(self) -> None:
        """Do nothing: others do not wait for this request."""

    def extend(self, seconds: float) -> None:
        """Move the deadline."""
        self.deadline += seconds
