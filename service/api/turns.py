"""The pictures of one request, a few at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from service.engine import Engine

Picture = TypeVar("Picture")
Result = TypeVar("Result")


async def in_turns(
    engine: Engine, work: Callable[[Picture], Awaitable[Result]], pictures: Sequence[Picture]
) -> list[Result]:
    """Await `work` on each picture and return the results in order; the first error ends the rest.

    At most a device batch at a time, so that one request does not fill the queue for everybody.
    """
    turn = asyncio.Semaphore(engine.max_batch)

    async def one(picture: Picture) -> Result:
        async with turn:
            return await work(picture)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(picture)) for picture in pictures]
    except ExceptionGroup as failures:
        first = failures.exceptions[0]
    else:
        return [task.result() for task in tasks]
    raise first  # here, so that it keeps its own cause
