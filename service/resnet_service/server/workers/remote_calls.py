"""What an HTTP worker asks the main process for: requests and their answers, and the calls of `Backend`."""

import asyncio
import base64
import pickle
from collections.abc import Sequence
from typing import Any, Final, cast

from resnet_service.errors import ServiceUnavailable
from resnet_service.explanations import Explanation
from resnet_service.images import Crop
from resnet_service.inference.statistics import ModelStatistics
from resnet_service.models import ModelVersion
from resnet_service.schemas import BenchResponse, InfoResponse
from resnet_service.server.auth import APIKey
from resnet_service.server.workers.calls import encode_call
from resnet_service.server.workers.frames import Frame, FrameChannel, Kind

_HEALTH_TIMEOUT_S: Final = 5.0
"""Time of the main process to answer a probe; its event loop has no step of more than milliseconds."""


class RemoteCalls:
    """The part of `RemoteBackend` that only passes calls on; `Backend` describes the methods.

    channel: the protocol for the socket of the main process, whose answers the subclass receives.
    """

    def __init__(self, channel: FrameChannel) -> None:
        self.channel = channel
        self._tokens = 0
        self._pending: dict[int, asyncio.Future[Frame]] = {}

    async def count_request(self, key: APIKey) -> None:
        """See `Backend`."""
        await self._call("count_request", key.digest.hex())

    async def info(self) -> InfoResponse:
        """See `Backend`."""
        return cast(InfoResponse, await self._call("info"))

    async def statistics(self) -> Sequence[ModelStatistics]:
        """See `Backend`."""
        return cast(Sequence[ModelStatistics], await self._call("statistics"))

    async def benchmark(self, key: ModelVersion, batch_sizes: list[int], iterations: int) -> BenchResponse:
        """See `Backend`."""
        return cast(BenchResponse, await self._call("benchmark", key, batch_sizes, iterations))

    async def explain(
        self, key: ModelVersion, crop: Crop, class_id: int | None, deadline: float | None
    ) -> Explanation:
        """See `Backend`."""
        pixels = base64.b64encode(crop.tobytes()).decode()
        return cast(Explanation, await self._call("explain", key, pixels, len(crop), class_id, deadline))

    async def render_metrics(self, accept: str) -> tuple[bytes, str]:
        """See `Backend`: the metrics of all processes."""
        return cast(tuple[bytes, str], await self._call("render_metrics", accept))

    async def reload(self) -> None:
        """See `Backend`."""
        await self._call("reload")

    async def load(self, name: str) -> None:
        """See `Backend`."""
        await self._call("load", name)

    async def unload(self, name: str) -> None:
        """See `Backend`."""
        await self._call("unload", name)

    def new_token(self) -> int:
        """Return the number of a request to the main process."""
        self._tokens = self._tokens % 0xFFFF_FFFF + 1
        return self._tokens

    async def ask(self, frame: Frame) -> Frame:
        """Send a request, and return the answer. Raises the error of a FAILED answer.

        If the caller is cancelled, so is the request.
        """
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._pending[frame.token] = future
        self.channel.send(frame)
        try:
            return await future
        except asyncio.CancelledError:
            self.channel.send(Frame(Kind.CANCEL, token=frame.token))
            raise
        finally:
            self._pending.pop(frame.token, None)

    async def _check(self, name: str) -> None:
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                await self._call(name)
        except TimeoutError as error:
            raise ServiceUnavailable("the main process does not respond") from error

    async def _call(self, name: str, *arguments: Any) -> object:
        payload = encode_call(name, *arguments)
        answer = await self.ask(Frame(Kind.CALL, token=self.new_token(), payload=payload))
        return cast(object, pickle.loads(answer.payload))  # noqa: S301 - from the main process
