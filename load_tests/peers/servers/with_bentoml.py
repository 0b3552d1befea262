"""BentoML, with its adaptive batching: `bentoml serve load_tests.peers.servers.with_bentoml:Resnet`."""

from pathlib import Path
from typing import Any

import bentoml
import torch

from load_tests.peers.servers.resnet import MAX_BATCH, Classifier


@bentoml.service(workers=1, traffic={"timeout": 60})
class Resnet:
    """One worker process with the network."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=60_000)  # type: ignore[untyped-decorator]
    def predict(self, file: list[Path]) -> list[dict[str, Any]]:
        """Decode and classify a batch."""
        return self.classifier.classify(torch.stack([self.classifier.decode(image) for image in file]))
