"""Run the images of one request with bounded concurrency, and cancel them if the client disconnects."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from resnet_service.server.uploads import mark_body_discarded

Item = TypeVar("Item")
Result = TypeVar("Result")


async def map_concurrently(
    work: Callable[[Item], Awaitable[Result]], items: Sequence[Item], limit: int
) -> list[Result]:
    """Await `work(item)` for each item and return the results in the order of the items.

    At most `limit` items run at the same time. With a limit of one device batch, a request with many images
    cannot fill the queue and have the requests of other clients rejected. The first exception cancels the
    remaining items and is raised.
    """
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


async def cancel_on_disconnect(request: Request, work: Awaitable[Result]) -> Result:
    """Await `work`, and cancel it if the client disconnects. The request body must have been read.

    Raises ClientDisconnect if the client disconnects.
    """
    task = asyncio.current_task()
    assert task is not None
    is_disconnected = False

    async def watch() -> None:
        nonlocal is_disconnected
        mark_body_discarded(request.scope)  # the body of a GET request, for example, has not been read
        while (await request.receive())["type"] != "http.disconnect":
            pass
        is_disconnected = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError as error:
        if is_disconnected and task.uncancel() == 0:
            raise ClientDisconnect from error
        raise
    finally:
        watcher.cancel()
