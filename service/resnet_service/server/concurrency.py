"""Run the images of one request with bounded concurrency."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


async def map_concurrently(
    work: Callable[[Item], Awaitable[Result]], items: Sequence[Item], limit: int
) -> list[Result]:
    """Await `work(item)` for each item and return the results in the order of the items.

    At most `limit` items run at the same time. The first exception cancels the remaining items and is raised.
    """
    if len(items) == 1:  # of nearly all requests: a task and its group take 9 us
        return [await work(items[0])]
    semaphore = asyncio.Semaphore(limit)

    async def run(item: Item) -> Result:
        async with semaphore:
            return await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(item)) for item in items]
    except ExceptionGroup as group_error:
        error = group_error.exceptions[0]
    else:
        return [task.result() for task in tasks]
    raise error  # outside of the except block, which would replace its __context__
