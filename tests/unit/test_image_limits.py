"""The limits of a request with several images: on those that are decoded, and on those that are queued."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from resnet_service.errors import DeadlineExceededError
from resnet_service.inference.image_limits import ImageLimits
from tests.support.batching import run_async, run_pending_tasks


class Stages:
    """Counts images that are decoded and that run; each stage ends when its event is set."""

    def __init__(self) -> None:
        self.at_a_time: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.may_end = {"decode": asyncio.Event(), "run": asyncio.Event()}

    async def _stage(self, name: str) -> None:
        self.at_a_time[name] += 1
        self.most[name] = max(self.most[name], self.at_a_time[name])
        try:
            await self.may_end[name].wait()
        finally:
            self.at_a_time[name] -= 1

    async def image(self, limits: ImageLimits, deadline: float | None = None) -> str:
        async def decode() -> str:
            await self._stage("decode")
            return "image"

        async def run(prepare: Callable[[], Awaitable[str]]) -> str:
            image = await prepare()
            await self._stage("run")
            return image

        return await limits.run(decode, run, deadline)


@run_async
async def test_images_are_limited_in_each_stage() -> None:
    """Of ten images, two are decoded and three run at the same time, and all of them finish."""
    limits, stages = ImageLimits(decoding=2, queued=3), Stages()
    images = [asyncio.create_task(stages.image(limits)) for _ in range(10)]
    await run_pending_tasks()
    assert stages.at_a_time["decode"] == 2
    stages.may_end["decode"].set()
    await run_pending_tasks()
    assert stages.at_a_time["run"] == 3
    stages.may_end["run"].set()
    assert await asyncio.gather(*images) == ["image"] * 10
    assert stages.most == {"decode": 2, "run": 3}


@run_async
async def test_cancelled_images_leave_their_places_to_others() -> None:
    """Whether they are decoded, wait, or run."""
    limits, stages = ImageLimits(decoding=2, queued=2), Stages()
    for ended in ("", "decode", "run"):
        if ended:
            stages.may_end[ended].set()
        images = [asyncio.create_task(stages.image(limits)) for _ in range(5)]
        await run_pending_tasks()
        for image in images:
            image.cancel()
        await asyncio.gather(*images, return_exceptions=True)
    assert await asyncio.gather(*[stages.image(limits) for _ in range(5)]) == ["image"] * 5


@run_async
@pytest.mark.parametrize("stage", ["decode", "run"])
async def test_image_that_waits_until_the_deadline_fails(stage: str) -> None:
    """Behind an image that is decoded, or one that runs."""
    limits, stages = ImageLimits(decoding=1, queued=1), Stages()
    if stage == "run":
        stages.may_end["decode"].set()
    first = asyncio.create_task(stages.image(limits))
    await run_pending_tasks()
    with pytest.raises(DeadlineExceededError):
        await stages.image(limits, deadline=asyncio.get_running_loop().time())
    for event in stages.may_end.values():
        event.set()
    assert await first == "image"
