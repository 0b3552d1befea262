"""Ray Serve, with its dynamic request batching."""

import io
from typing import Any

import torch
from ray import serve
from starlette.requests import Request

from load_tests.peers.servers.resnet import MAX_BATCH, PORT, Classifier


@serve.deployment(max_ongoing_requests=64)
class Resnet:
    """One replica with the network."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.01)
    async def classify(self, bodies: list[bytes]) -> list[dict[str, Any]]:
        """Decode and classify a batch."""
        images = [self.classifier.decode(io.BytesIO(body)) for body in bodies]
        return self.classifier.classify(torch.stack(images))

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Classify one body."""
        result: dict[str, Any] = await self.classify(await request.body())
        return result


if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Resnet.bind(), blocking=True)  # type: ignore[attr-defined]
