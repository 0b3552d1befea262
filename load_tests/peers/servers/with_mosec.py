"""Mosec, with two processes that decode images and one that classifies batches."""

import io
import sys
from typing import Any

import mosec
import numpy as np
import numpy.typing as npt
import torch

from load_tests.peers.servers.resnet import MAX_BATCH, PORT, Classifier


class Decode(mosec.Worker):  # type: ignore[misc]
    """Bytes -> [3, 224, 224]."""

    def __init__(self) -> None:
        super().__init__()
        torch.set_num_threads(1)  # otherwise the threads of three processes compete for the cores
        self.classifier = Classifier()

    def deserialize(self, data: bytes) -> bytes:
        """Return the body unchanged: it is an image, not JSON."""
        return data

    def forward(self, data: bytes) -> npt.NDArray[np.float32]:
        """Decode one image."""
        pixels: npt.NDArray[np.float32] = self.classifier.decode(io.BytesIO(data)).numpy()
        return pixels


class Classify(mosec.Worker):  # type: ignore[misc]
    """A batch -> results."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = Classifier()

    def forward(self, images: list[npt.NDArray[np.float32]]) -> list[dict[str, Any]]:
        """Classify a batch."""
        return self.classifier.classify(torch.from_numpy(np.stack(images)))


if __name__ == "__main__":
    sys.argv[1:] = ["--port", str(PORT), "--timeout", "60000"]
    server = mosec.Server()
    server.append_worker(Decode, num=2)
    server.append_worker(Classify, max_batch_size=MAX_BATCH, max_wait_time=10)
    server.run()
