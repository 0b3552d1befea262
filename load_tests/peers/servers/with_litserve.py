"""LitServe, with its dynamic batching."""

from typing import Any

import litserve
import torch
from fastapi import Request
from torch import Tensor

from load_tests.peers.servers.resnet import MAX_BATCH, PORT, Classifier


class Api(litserve.LitAPI):  # type: ignore[misc]
    """Decodes each request and classifies batches."""

    def setup(self, _device: str) -> None:
        """Load the network in the worker process."""
        self.classifier = Classifier()

    def decode_request(self, request: Request) -> Tensor:
        """Decode one upload. LitServe requires the type Request but passes the parsed form."""
        return self.classifier.decode(request["file"].file)

    def batch(self, inputs: list[Tensor]) -> Tensor:
        """Stack images."""
        return torch.stack(inputs)

    def predict(self, batch: Tensor) -> list[dict[str, Any]]:
        """Classify a batch."""
        return self.classifier.classify(batch)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the results, which are separate already."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Return the response body of one request."""
        return output


if __name__ == "__main__":
    server = litserve.LitServer(Api(max_batch_size=MAX_BATCH, batch_timeout=0.01), accelerator="cpu")
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False)
