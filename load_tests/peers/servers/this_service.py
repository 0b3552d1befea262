"""This service with a runtime that does not compute, to measure decoding and serving only."""

import os
import sys
from collections.abc import Sequence

import numpy as np

from load_tests.peers.servers.resnet import MAX_BATCH
from resnet_service.images import Crop
from resnet_service.log_config import configure_logging
from resnet_service.runtimes import DeviceMemory, Runtime, TopKResult, stack_crops
from resnet_service.server.run import run_server
from resnet_service.server.state import build_app_state, count_workers
from resnet_service.settings import Settings


class NoOpRuntime:
    """Returns the first k classes without running the network."""

    def __init__(self, runtime: Runtime) -> None:
        self.name, self.device, self.precision = runtime.name, runtime.device, runtime.precision
        self.embedding_size: int | None = None

    def run(self, crops: Sequence[Crop], k: int, *, with_embeddings: bool = False) -> TopKResult:  # noqa: ARG002
        """Stack the batch into new memory, as the runtimes on a CPU and the other servers do."""
        count = len(stack_crops(crops))
        return TopKResult(
            np.tile(np.arange(k), (count, 1)),
            np.zeros((count, k), np.float32),
            np.zeros(count, np.float32),
            self.device,
        )

    def memory(self) -> DeviceMemory | None:
        """Return None: no device memory is used."""
        return None


if __name__ == "__main__":
    settings = Settings(
        model="resnet50",
        # By default the largest batch follows from the operations of the network, which are left out here.
        max_batch=int(os.environ.get("RESNET_SERVICE_MAX_BATCH", MAX_BATCH)),
        weights=os.environ["WEIGHTS"],
        port=int(os.environ["PORT"]),
        management_port=0,
        access_log=False,
    )
    configure_logging(settings.log_level, settings.log_format)
    sys.exit(run_server(build_app_state(settings, NoOpRuntime, workers=count_workers(settings))))
