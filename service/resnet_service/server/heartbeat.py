"""The supervision of an event loop from another thread or process."""

import time
from typing import Protocol


class _Cell(Protocol):
    """A list or shared memory with one number."""

    def __getitem__(self, index: int, /) -> float: ...

    def __setitem__(self, index: int, value: float, /) -> None: ...


class Heartbeat:
    """When an event loop last ran. All methods may be called from any thread.

    heartbeat = Heartbeat()
    heartbeat.beat()
    is_blocked = heartbeat.age_s > 60
    """

    def __init__(self, cell: _Cell | None = None) -> None:
        """Create a heartbeat that is stopped; `cell` keeps the time, for processes that share it."""
        self._beat_at: _Cell = [0.0] if cell is None else cell

    @property
    def age_s(self) -> float:
        """Seconds since the last `beat`; 0 before the first one and after `stop`."""
        beat_at = self._beat_at[0]
        return time.monotonic() - beat_at if beat_at else 0.0

    def beat(self) -> None:
        """Record that the event loop runs."""
        self._beat_at[0] = time.monotonic()

    def stop(self) -> None:
        """End the supervision of the event loop."""
        self._beat_at[0] = 0.0
