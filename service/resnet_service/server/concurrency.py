"""The images of one request, a few at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from resnet_service.inference.engine import Engine

Image = TypeVar("Image")
Result = TypeVar("Result")


async def map_concurrently(
    engine: Engine, work: Callable[[Image], Awaitable[Result]], images: Sequence[Image]
) -> list[Result]:
    """Await `work` on each image and return the results in order; the first error ends the rest.

    At most a device batch at a time, so that one request does not fill the queue for everybody.
    """
    turn = asyncio.Semaphore(engine.max_batch)

    async def one(image: Image) -> Result:
        async with turn:
            return await work(image)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(image)) for image in images]
    except ExceptionGroup as failures:
        first = failures.exceptions[0]
    else:
        return [task.result() for task in tasks]
    raise first  # here, so that it keeps its own cause
