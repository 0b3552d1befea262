"""A client of the service, for Python: typed answers, retries, and time limits; with and without asyncio.

    with Client("http://localhost:8000") as client:
        print(client.predict(Path("dog.jpg")).predictions[0].label)

A request that gets 429 or 503 is tried again when its Retry-After says, and one whose connection fails after
a growing pause: to classify an image twice does no harm. Needs httpx, an extra of the package; no PyTorch.
"""

import asyncio
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from resnet_service import __version__
from resnet_service.benchmark.timing import BenchmarkRow
from resnet_service.schemas import BatchPredictResponse, PredictResponse, Problem

Image = bytes | Path
"""An encoded image, or the file that it is in."""

_Answer = TypeVar("_Answer")
_Outcome = httpx.Response | httpx.HTTPError | httpx.InvalidURL

_AGAIN: Final = frozenset({429, 503})
_FIRST_PAUSE_S: Final = 0.1
_QUICK_S: Final = 5.0
_PREDICTED: Final = TypeAdapter(PredictResponse)
_BATCH: Final = TypeAdapter(BatchPredictResponse)
_INFO: Final = TypeAdapter(dict[str, Any])
_ROWS: Final = TypeAdapter(list[BenchmarkRow])


class ServiceUnavailableError(Exception):
    """Nobody answers at the address, or somebody else; the message says what was tried."""


class APIError(Exception):
    """The service answered with an error, which the message tells in its words; `status` is HTTP's."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem
        self.status = problem.status


@dataclass(frozen=True)
class _Call:
    """A request that may be sent more than once."""

    method: str
    path: str
    parameters: dict[str, str | int]
    files: list[tuple[str, tuple[str, bytes]]] | None = None
    timeout_s: float | None = None


class _Patience:
    """How long one call may still take, and whether and when it is tried again."""

    def __init__(self, attempts: int, timeout_s: float) -> None:
        self._left = attempts
        self._pause_s = _FIRST_PAUSE_S
        self._ends = time.monotonic() + timeout_s

    @property
    def seconds(self) -> float:
        """What is left of the time, for the next attempt."""
        return max(0.001, self._ends - time.monotonic())

    def pause_after(self, outcome: _Outcome) -> float | None:
        """Return the seconds to wait before the next attempt; None where there is to be none."""
        self._left -= 1
        pause_s, self._pause_s = self._pause_s, 2 * self._pause_s
        if isinstance(outcome, httpx.Response):
            if outcome.status_code not in _AGAIN:
                return None
            given = outcome.headers.get("Retry-After", "")
            pause_s = float(given) if given.isdecimal() else pause_s
        elif not isinstance(outcome, httpx.TransportError):
            return None
        pause_s *= random.uniform(1, 1.1)  # noqa: S311  # so that those rejected at once do not return at once
        return pause_s if self._left > 0 and pause_s < self._ends - time.monotonic() else None


class _Calls:
    """What both clients ask, and how they read the answers."""

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = 60.0, attempts: int = 3
    ) -> None:
        """Talk to the service at `url`, with `api_key` where it asks for one.

        After `timeout_s` seconds no attempt is begun, and no single wait of one, for a connection or for the
        next bytes, is longer.
        """
        self.url = url.rstrip("/")
        self._shown = re.sub("//[^/@]*@", "//", self.url)  # without a password
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._headers = {"User-Agent": f"resnet-service/{__version__}"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def _patience(self, call: _Call) -> _Patience:
        return _Patience(self._attempts, call.timeout_s or self._timeout_s)

    def _request(self, call: _Call) -> dict[str, Any]:
        return {
            "method": call.method,
            "url": f"{self.url}{call.path}",
            "params": call.parameters,
            "files": call.files,
        }

    def _read(self, outcome: _Outcome, kind: TypeAdapter[_Answer], field: str | None) -> _Answer:
        if not isinstance(outcome, httpx.Response):
            reason = str(outcome) or type(outcome).__name__
            raise ServiceUnavailableError(f"{self._shown} does not answer: {reason}") from outcome
        try:
            body = outcome.json()
            if outcome.is_error:
                raise APIError(Problem.model_validate(body))
            return kind.validate_python(body[field] if field else body)
        except (ValueError, LookupError, TypeError, ValidationError) as error:
            raise ServiceUnavailableError(f"what answers at {self._shown} is not resnet-service") from error


def _predict(image: Image, top_k: int | None, name: str | None) -> _Call:
    return _Call("POST", "/predict", _given(top_k=top_k), [_file(image, name)])


def _predict_batch(images: Sequence[Image], top_k: int | None) -> _Call:
    return _Call("POST", "/predict/batch", _given(top_k=top_k), [_file(image) for image in images])


def _bench(batch_sizes: Sequence[int] | None, iterations: int | None, timeout_s: float) -> _Call:
    sizes = None if batch_sizes is None else ",".join(map(str, batch_sizes))
    return _Call("GET", "/bench", _given(batch_sizes=sizes, iterations=iterations), timeout_s=timeout_s)


def _file(image: Image, name: str | None = None) -> tuple[str, tuple[str, bytes]]:
    if isinstance(image, Path):
        return "file", (name or image.name, image.read_bytes())
    return "file", (name or "image", image)


def _given(**parameters: str | int | None) -> dict[str, str | int]:
    return {name: value for name, value in parameters.items() if value is not None}


_INFO_CALL: Final = _Call("GET", "/info", {}, timeout_s=_QUICK_S)


class Client(_Calls):
    """Asks the service, and waits. Safe to use from several threads; close it, or use it in a `with` block.

    Every method raises APIError, and ServiceUnavailableError once the attempts or the time are used up.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = 60.0, attempts: int = 3
    ) -> None:
        super().__init__(url, api_key=api_key, timeout_s=timeout_s, attempts=attempts)
        self._http = httpx.Client(headers=self._headers)

    def predict(self, image: Image, *, top_k: int | None = None, name: str | None = None) -> PredictResponse:
        """Classify one image; `name` is what the service is told as the file's name."""
        return self._ask(_predict(image, top_k, name), _PREDICTED)

    def predict_batch(self, images: Sequence[Image], *, top_k: int | None = None) -> BatchPredictResponse:
        """Classify several images, each with its predictions or its own error."""
        return self._ask(_predict_batch(images, top_k), _BATCH)

    def info(self) -> dict[str, Any]:
        """Return what is served, on what, within which limits."""
        return self._ask(_INFO_CALL, _INFO)

    def bench(
        self,
        batch_sizes: Sequence[int] | None = None,
        iterations: int | None = None,
        *,
        timeout_s: float = 600.0,
    ) -> list[BenchmarkRow]:
        """Measure the model where it is; that takes minutes for a large network on a small machine."""
        return self._ask(_bench(batch_sizes, iterations, timeout_s), _ROWS, "rows")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, call: _Call, kind: TypeAdapter[_Answer], field: str | None = None) -> _Answer:
        patience = self._patience(call)
        while True:
            try:
                outcome: _Outcome = self._http.request(**self._request(call), timeout=patience.seconds)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                outcome = error
            pause_s = patience.pause_after(outcome)
            if pause_s is None:
                return self._read(outcome, kind, field)
            time.sleep(pause_s)  # what this client is for; who must not wait takes the other


class AsyncClient(_Calls):
    """As `Client`, for asyncio: use it in an `async with` block, or `await close()` it."""

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = 60.0, attempts: int = 3
    ) -> None:
        super().__init__(url, api_key=api_key, timeout_s=timeout_s, attempts=attempts)
        self._http = httpx.AsyncClient(headers=self._headers, limits=httpx.Limits(max_connections=None))

    async def predict(
        self, image: Image, *, top_k: int | None = None, name: str | None = None
    ) -> PredictResponse:
        """Classify one image: see `Client.predict`."""
        return await self._ask(await asyncio.to_thread(_predict, image, top_k, name), _PREDICTED)

    async def predict_batch(
        self, images: Sequence[Image], *, top_k: int | None = None
    ) -> BatchPredictResponse:
        """Classify several images: see `Client.predict_batch`."""
        return await self._ask(await asyncio.to_thread(_predict_batch, images, top_k), _BATCH)

    async def info(self) -> dict[str, Any]:
        """Return what is served: see `Client.info`."""
        return await self._ask(_INFO_CALL, _INFO)

    async def bench(
        self,
        batch_sizes: Sequence[int] | None = None,
        iterations: int | None = None,
        *,
        timeout_s: float = 600.0,
    ) -> list[BenchmarkRow]:
        """Measure the model where it is: see `Client.bench`."""
        return await self._ask(_bench(batch_sizes, iterations, timeout_s), _ROWS, "rows")

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _ask(self, call: _Call, kind: TypeAdapter[_Answer], field: str | None = None) -> _Answer:
        patience = self._patience(call)
        while True:
            try:
                outcome: _Outcome = await self._http.request(**self._request(call), timeout=patience.seconds)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                outcome = error
            pause_s = patience.pause_after(outcome)
            if pause_s is None:
                return self._read(outcome, kind, field)
            await asyncio.sleep(pause_s)
