"""LitServe, with its dynamic batching."""

from typing import Any

import litserve
import torch
from fastapi import Request
from torch import Tensor

from load_tests.peers.servers.resnet import MAX_BATCH, PORT, Classifier


class Api(litserve.LitAPI):  # type: ignore[misc]
    """Decode each request, classify a batch, answer each."""

    def setup(self, _device: str) -> None:
        """Load the network in the worker."""
        self.classifier = Classifier()

    def decode_request(self, request: Request) -> Tensor:
        """Read one upload; what comes is the parsed form, for which LitServe wants this type."""
        return self.classifier.decode(request["file"].file)

    def batch(self, inputs: list[Tensor]) -> Tensor:
        """Put images together."""
        return torch.stack(inputs)

    def predict(self, batch: Tensor) -> list[dict[str, Any]]:
        """Classify a batch."""
        return self.classifier.classify(batch)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Take answers apart."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Answer one request."""
        return output


if __name__ == "__main__":
    server = litserve.LitServer(Api(max_batch_size=MAX_BATCH, batch_timeout=0.01), accelerator="cpu")
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False)
