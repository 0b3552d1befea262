"""The service with a model that can be slowed down: each SIGUSR1 switches between slow and normal.

`python -m load_tests.slow_server MODEL FACTOR` serves MODEL; while slow, batches take FACTOR times as long.
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
    """Wraps a runtime; its batches take `factor` times as long while `is_slow`."""

    def __init__(self, runtime: Runtime, factor: float) -> None:
        self._runtime = runtime
        self._factor = factor
        self.name, self.device, self.precision = runtime.name, runtime.device, runtime.precision
        self.embedding_size = runtime.embedding_size
        self.is_slow = False

    def run(self, crops: Sequence[Crop], k: int, *, with_embeddings: bool = False) -> TopKResult:
        """Run the batch; while slow, then sleep for the additional time."""
        started = time.perf_counter()
        result = self._runtime.run(crops, k, with_embeddings=with_embeddings)
        if self.is_slow:
            time.sleep((time.perf_counter() - started) * (self._factor - 1))
        return result

    def memory(self) -> DeviceMemory | None:
        """Return the memory of the device."""
        return self._runtime.memory()


def main(model: str, factor: float) -> int:
    """Serve until a signal ends the process."""
    settings = Settings(model=model, port=0, management_port=0, access_log=False, log_format="json")
    configure_logging(settings.log_level, settings.log_format)
    runtimes: list[SlowRuntime] = []

    def wrap(runtime: Runtime) -> SlowRuntime:
        runtimes.append(SlowRuntime(runtime, factor))
        return runtimes[-1]

    def switch(_signal: int, _frame: FrameType | None) -> None:
        for runtime in runtimes:
            runtime.is_slow = not runtime.is_slow

    signal.signal(signal.SIGUSR1, switch)
    return run_server(build_app_state(settings, wrap))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
