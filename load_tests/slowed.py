"""The service with a model that can be slowed: each SIGUSR1 switches between slow and quick.

`python -m load_tests.slowed MODEL FACTOR` serves MODEL, whose batches take FACTOR times as long while slow.
Everything else is the service as it ships.
"""

import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

from service import logs
from service.api import server
from service.api.service import load
from service.images import Crop
from service.runtimes import Memory, Runtime, TopK
from service.settings import Settings


class SlowedRuntime:
    """A runtime whose batches take `factor` times as long while `slow`."""

    def __init__(self, runtime: Runtime, factor: float) -> None:
        self._runtime = runtime
        self._factor = factor
        self.name, self.device, self.precision = runtime.name, runtime.device, runtime.precision
        self.slow = False

    def run(self, crops: Sequence[Crop], k: int) -> TopK:
        """Run the batch, and wait as long again as it takes."""
        began = time.perf_counter()
        answer = self._runtime.run(crops, k)
        if self.slow:
            time.sleep((time.perf_counter() - began) * (self._factor - 1))
        return answer

    def memory(self) -> Memory | None:
        """Return the device's memory."""
        return self._runtime.memory()


def main(model: str, factor: float) -> int:
    """Serve until a signal ends it."""
    settings = Settings(model=model, port=0, access_log=False, log_format="json")
    logs.configure(settings.log_level, settings.log_format)
    runtimes: list[SlowedRuntime] = []

    def slowed(runtime: Runtime) -> SlowedRuntime:
        runtimes.append(SlowedRuntime(runtime, factor))
        return runtimes[-1]

    def switch(_signal: int, _frame: FrameType | None) -> None:
        for runtime in runtimes:
            runtime.slow = not runtime.slow

    signal.signal(signal.SIGUSR1, switch)
    return server.run(load(settings, slowed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
