"""The slots of an HTTP worker: bulk images leave some to interactive ones."""

import asyncio

from resnet_service.batching import Lane
from resnet_service.server.workers.remote_model import SlotPool
from tests.support.batching import run_async, run_pending_tasks


@run_async
async def test_interactive_image_gets_a_slot_although_bulk_images_wait() -> None:
    """Bulk images have at most half of the slots; the others wait, and take what is put back."""
    pool = SlotPool(4)
    bulk = [asyncio.create_task(pool.take(Lane.BULK)) for _ in range(5)]
    await run_pending_tasks()
    assert [task.done() for task in bulk] == [True, True, False, False, False]
    interactive = [await pool.take(Lane.INTERACTIVE) for _ in range(2)]
    taken = {*interactive, *(task.result() for task in bulk[:2])}
    assert taken == {0, 1, 2, 3}
    pool.put_back(bulk[0].result(), Lane.BULK)
    assert await bulk[2] == bulk[0].result()
    for task in bulk[3:]:
        task.cancel()


@run_async
async def test_slot_of_an_image_that_is_cancelled_while_it_waits_is_not_lost() -> None:
    """It is passed to the next image, also if both happen at the same moment."""
    pool = SlotPool(1)
    slot = await pool.take(Lane.INTERACTIVE)
    cancelled = asyncio.create_task(pool.take(Lane.INTERACTIVE))
    waiting = asyncio.create_task(pool.take(Lane.INTERACTIVE))
    await run_pending_tasks()
    cancelled.cancel()
    pool.put_back(slot, Lane.INTERACTIVE)
    assert await waiting == slot
