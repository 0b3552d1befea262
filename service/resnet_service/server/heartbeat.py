"""The supervision of an event loop from another thread."""

import time


class Heartbeat:
    """When an event loop last ran. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._beat_at: float | None = None

    @property
    def age_s(self) -> float:
        """Seconds since the last `beat`; 0 before the first one and after `stop`."""
        beat_at = self._beat_at
        return 0.0 if beat_at is None else time.monotonic() - beat_at

    def beat(self) -> None:
        """Record that the event loop runs."""
        self._beat_at = time.monotonic()

    def stop(self) -> None:
        """End the supervision of the event loop."""
        self._beat_at = None
