"""The clients: `Client` blocks its thread, `AsyncClient` is for asyncio."""

import asyncio
import time
from collections.abc import Sequence
from typing import Self, TypeVar

import httpx

from resnet_service.client import base
from resnet_service.client.base import BaseClient, Image, RequestSpec
from resnet_service.client.retry import Outcome
from resnet_service.schemas import (
    BatchPredictResponse,
    BenchmarkRow,
    EmbedResponse,
    ExplainResponse,
    InfoResponse,
    PredictResponse,
    Priority,
)

_Body = TypeVar("_Body")


class Client(BaseClient):
    """Synchronous client of one service, with retries. Keeps connections open until `close`.

    May be used by several threads. Every method raises APIError for an error response, and
    ServiceUnavailableError if no response arrived within the attempts and the time.

        with Client("http://localhost:8000", timeout_s=10) as client:
            print(client.predict(Path("dog.jpg"), top_k=3).predictions)
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = 60.0, attempts: int = 3
    ) -> None:
        super().__init__(url, api_key=api_key, timeout_s=timeout_s, attempts=attempts)
        self._http = httpx.Client(headers=self._headers)

    def predict(
        self,
        image: Image,
        *,
        top_k: int | None = None,
        name: str | None = None,
        priority: Priority | None = None,
        timeout_ms: int | None = None,
        model: str | None = None,
        version: str | None = None,
    ) -> PredictResponse:
        """Classify one image.

        `top_k` is the number of classes, and `name` the file name in the request. The service runs
        interactive requests before bulk ones, and gives up after `timeout_ms` milliseconds; the defaults are
        interactive and its own limit. `model` and `version` name one of several models.
        """
        parameters = _parameters(top_k, priority, timeout_ms, model, version)
        return self._send(base.predict_request(image, name, **parameters))

    def predict_batch(
        self,
        images: Sequence[Image],
        *,
        top_k: int | None = None,
        priority: Priority | None = None,
        timeout_ms: int | None = None,
        model: str | None = None,
        version: str | None = None,
    ) -> BatchPredictResponse:
        """Classify several images, by default as bulk; each result has either predictions or an error."""
        parameters = _parameters(top_k, priority, timeout_ms, model, version)
        return self._send(base.predict_batch_request(images, **parameters))

    def embed(
        self,
        image: Image,
        *,
        normalize: bool = False,
        name: str | None = None,
        priority: Priority | None = None,
        timeout_ms: int | None = None,
        model: str | None = None,
        version: str | None = None,
    ) -> EmbedResponse:
        """Return the embedding of one image, with `normalize` scaled to the length 1.

        Raises APIError with the status 422 if the model has none. The other arguments are those of `predict`.
        """
        parameters = _parameters(None, priority, timeout_ms, model, version)
        return self._send(base.embed_request(image, name, normalize=normalize, **parameters))

    def explain(
        self,
        image: Image,
        *,
        class_id: int | None = None,
        label: str | None = None,
        name: str | None = None,
        timeout_ms: int | None = None,
        model: str | None = None,
        version: str | None = None,
    ) -> ExplainResponse:
        """Return which places of an image speak for a class.

        The class is that with the index `class_id` or with `label`, by default the most probable one. The
        service explains one image at a time. The other parameters are those of `predict`.
        """
        parameters = _explain_parameters(class_id, label, timeout_ms, model, version)
        return self._send(base.explain_request(image, name, **parameters))

    def info(self) -> InfoResponse:
        """Return the model, the device, the versions, the machine and the request limits."""
        return self._send(base.info_request())

    def metrics(self) -> str:
        """Return the metrics of the service in Prometheus text format."""
        return self._send(base.metrics_request())

    def bench(
        self,
        batch_sizes: Sequence[int] | None = None,
        iterations: int | None = None,
        *,
        timeout_s: float = 600.0,
    ) -> list[BenchmarkRow]:
        """Benchmark the model on the service's device. A large network on a small machine takes minutes."""
        return self._send(base.bench_request(batch_sizes, iterations, timeout_s))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, spec: RequestSpec[_Body]) -> _Body:
        retry = self._retry_state(spec)
        while True:
            try:
                outcome: Outcome = self._http.request(
                    **self._request_arguments(spec), timeout=retry.remaining_s
                )
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                outcome = error
            delay_s = retry.next_delay(outcome)
            if delay_s is None:
                return self._parse(spec, outcome)
            time.sleep(delay_s)


class AsyncClient(BaseClient):
    """`Client` for asyncio, with the same methods as coroutines and no limit on connections.

    Usage: `async with AsyncClient(url) as client: response = await client.predict(image)`.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = 60.0, attempts: int = 3
    ) -> None:
        super().__init__(url, api_key=api_key, timeout_s=timeout_s, attempts=attempts)
        self._http = httpx.AsyncClient(headers=self._headers, limits=httpx.Limits(max_connections=None))

    async def predict(
        self,
        image: Image,
        *,
        top_k: int | None = None,
        name: str | None = None,
        priority: Priority | None = None,
        timeout_ms: int | None = None,
        model: str | None = None,
        version: str | None = None,
    ) -> PredictResponse:
        """Classify one image: see `Client.predict`."""
        parameters = _parameters(top_k, priority, timeout_ms, model, version)
        return await self._send(await asyncio.to_thread(base.predict_request, image, name, **parameters))

    async def predict_batch(
        self,
        images: Sequence[Image],
        *,
        top_k: int | None = None,
        priority: Priority | None = None,
        timeout_ms: int | None = None,
        model: str | None = None,
        version: str | None = None,
    ) -> BatchPredictResponse:
        """Classify several images: see `Client.predict_batch`."""
        parameters = _parameters(top_k, priority, timeout_ms, model, version)
        return await self._send(await asyncio.to_thread(base.predict_batch_request, images, **parameters))

    async def embed(
        self,
        image: Image,
        *,
        normalize: bool = False,
        name: str | None = None,
        priority: Priority | None = None,
        timeout_ms: int | None = None,
        model: str | None = None,
        version: str | None = None,
    ) -> EmbedResponse:
        """Return the embedding of one image: see `Client.embed`."""
        parameters = _parameters(None, priority, timeout_ms, model, version)
        spec = await asyncio.to_thread(base.embed_request, image, name, normalize=normalize, **parameters)
        return await self._send(spec)

    async def explain(
        self,
        image: Image,
        *,
        class_id: int | None = None,
        label: str | None = None,
        name: str | None = None,
        timeout_ms: int | None = None,
        model: str | None = None,
        version: str | None = None,
    ) -> ExplainResponse:
        """Return which places of an image speak for a class: see `Client.explain`."""
        parameters = _explain_parameters(class_id, label, timeout_ms, model, version)
        return await self._send(await asyncio.to_thread(base.explain_request, image, name, **parameters))

    async def info(self) -> InfoResponse:
        """Describe the service: see `Client.info`."""
        return await self._send(base.info_request())

    async def metrics(self) -> str:
        """Return the metrics of the service: see `Client.metrics`."""
        return await self._send(base.metrics_request())

    async def bench(
        self,
        batch_sizes: Sequence[int] | None = None,
        iterations: int | None = None,
        *,
        timeout_s: float = 600.0,
    ) -> list[BenchmarkRow]:
        """Benchmark the model on the service's device: see `Client.bench`."""
        return await self._send(base.bench_request(batch_sizes, iterations, timeout_s))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _send(self, spec: RequestSpec[_Body]) -> _Body:
        retry = self._retry_state(spec)
        while True:
            try:
                outcome: Outcome = await self._http.request(
                    **self._request_arguments(spec), timeout=retry.remaining_s
                )
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                outcome = error
            delay_s = retry.next_delay(outcome)
            if delay_s is None:
                return self._parse(spec, outcome)
            await asyncio.sleep(delay_s)


def _parameters(
    top_k: int | None,
    priority: Priority | None,
    timeout_ms: int | None,
    model: str | None,
    version: str | None,
) -> dict[str, str | int | None]:
    return {
        "top_k": top_k,
        "priority": priority,
        "timeout_ms": timeout_ms,
        "model": model,
        "version": version,
    }


def _explain_parameters(
    class_id: int | None,
    label: str | None,
    timeout_ms: int | None,
    model: str | None,
    version: str | None,
) -> dict[str, str | int | None]:
    return {
        "class_id": class_id,
        "label": label,
        "timeout_ms": timeout_ms,
        "model": model,
        "version": version,
    }
