"""What a long run leaves behind: memory that stays, and answers that had to wait."""

import http.client
import threading
import time
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import psutil

_EVERY_S: Final = 0.05


def resident_mb(pid: int | None = None) -> float:
    """Return the memory that a process, this one for None, holds, in MB (10^6 bytes)."""
    return float(psutil.Process(pid).memory_info().rss) / 1e6


class Pulse:
    """Asks /healthz every 50 ms while the block runs, and keeps the slowest answer, `slowest_ms`.

    The route does nothing, so what it takes is what the event loop was held up by, or the machine.
    """

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).netloc
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse")
        self.slowest_ms = 0.0
        self.failures = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _beat(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=30)
        while not self._end.wait(_EVERY_S):
            started = time.perf_counter()
            try:
                connection.request("GET", "/healthz")
                healthy = connection.getresponse().read() and True
            except (OSError, http.client.HTTPException):
                healthy = False
                connection.close()  # the next request connects anew
            self.failures += not healthy
            self.slowest_ms = max(self.slowest_ms, (time.perf_counter() - started) * 1e3)
        connection.close()
