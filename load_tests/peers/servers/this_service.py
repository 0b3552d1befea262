"""This service with a runtime that answers at once, so that what is left is decoding and serving."""

import os
import sys
from collections.abc import Sequence

import numpy as np

from service import logs
from service.api import server
from service.api.service import load
from service.images import Crop
from service.runtimes import Memory, Runtime, TopK, batched
from service.settings import Settings


class NoOpRuntime:
    """Answers at once."""

    def __init__(self, runtime: Runtime) -> None:
        self.name, self.device, self.precision = runtime.name, runtime.device, runtime.precision

    def run(self, crops: Sequence[Crop], k: int) -> TopK:
        """Stack the batch, as any runtime must, and answer with the first classes."""
        count = len(batched(crops))
        return TopK(np.tile(np.arange(k), (count, 1)), np.zeros((count, k), np.float32))

    def memory(self) -> Memory | None:
        """Return None: there is no device."""
        return None


if __name__ == "__main__":
    settings = Settings(weights=os.environ["WEIGHTS"], port=int(os.environ["PORT"]), access_log=False)
    logs.configure(settings.log_level, settings.log_format)
    sys.exit(server.run(load(settings, NoOpRuntime)))
