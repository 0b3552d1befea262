"""Python client of the service: `Client`, and `AsyncClient` for asyncio.

    from resnet_service.client import Client

    with Client("http://localhost:8000") as client:
        print(client.predict(Path("dog.jpg")).predictions[0].label)

Needs the extra `client` (httpx). Must not import torch.
"""

from resnet_service.client.base import APIError, Image, ServiceUnavailableError
from resnet_service.client.client import AsyncClient, Client
from resnet_service.schemas import (
    BatchPredictItem,
    BatchPredictResponse,
    BenchmarkRow,
    ExplainResponse,
    InfoResponse,
    Prediction,
    PredictResponse,
    Problem,
    StageTimings,
)

__all__ = [
    "APIError",
    "AsyncClient",
    "BatchPredictItem",
    "BatchPredictResponse",
    "BenchmarkRow",
    "Client",
    "ExplainResponse",
    "Image",
    "InfoResponse",
    "PredictResponse",
    "Prediction",
    "Problem",
    "ServiceUnavailableError",
    "StageTimings",
]
