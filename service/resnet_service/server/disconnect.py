"""Stop working for a client that has hung up."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from resnet_service.server.uploads import mark_body_discarded

Result = TypeVar("Result")


async def cancel_on_disconnect(request: Request, work: Awaitable[Result]) -> Result:
    """Await `work`, and cancel it when the client hangs up; the request's body must have been read.

    Raises ClientDisconnect for a client that went away.
    """
    working = asyncio.current_task()
    assert working is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        mark_body_discarded(request.scope)  # such as the body of a GET
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        working.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError as error:
        if gone and working.uncancel() == 0:
            raise ClientDisconnect from error
        raise
    finally:
        watching.cancel()
