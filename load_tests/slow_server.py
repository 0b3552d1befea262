"""The service with a model that can be slowed: each SIGUSR1 switches between slow and quick.

`python -m load_tests.slow_server MODEL FACTOR` serves MODEL, whose batches take FACTOR times as long while slow.
Everything else is the service as it ships.
"""

import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

from resnet_service.images import Crop
from resnet_service.log_config import configure_logging
from resnet_service.runtimes import DeviceMemory, Runtime, TopKResult
from resnet_service.server.run import run_server
from resnet_service.server.state import build_app_state
from resnet_service.settings import Settings


class SlowRuntime:
    """A runtime whose batches take `factor` times as long while `slow`."""

    def __init__(self, runtime: Runtime, factor: float) -> None:
        self._runtime = runtime
        self._factor = factor
        self.name, self.device, self.precision = runtime.name, runtime.device, runtime.precision
        self.slow = False

    def run(self, crops: Sequence[Crop], k: int) -> TopKResult:
        """Run the batch, and wait as long again as it takes."""
        began = time.perf_counter()
        answer = self._runtime.run(crops, k)
        if self.slow:
            time.sleep((time.perf_counter() - began) * (self._factor - 1))
        return answer

    def memory(self) -> DeviceMemory | None:
        """Return the device's memory."""
        return self._runtime.memory()


def main(model: str, factor: float) -> int:
    """Serve until a signal ends it."""
    settings = Settings(model=model, port=0, access_log=False, log_format="json")
    configure_logging(settings.log_level, settings.log_format)
    runtimes: list[SlowRuntime] = []

    def slowed(runtime: Runtime) -> SlowRuntime:
        runtimes.append(SlowRuntime(runtime, factor))
        return runtimes[-1]

    def switch(_signal: int, _frame: FrameType | None) -> None:
        for runtime in runtimes:
            runtime.slow = not runtime.slow

    signal.signal(signal.SIGUSR1, switch)
    return run_server(build_app_state(settings, slowed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
