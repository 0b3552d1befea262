"""The micro-batcher: groups items that arrive concurrently into batches for one or more devices.

Its contract, each line of which has tests (test_batching.py, test_batching_lanes.py,
test_batching_errors.py and test_batching_rejection.py in tests/unit):

1. Work-conserving. As soon as a runner is idle it gets the items that wait, up to the batch size limit: what
   fits the device, or `largest_batch` if that is smaller. The next batch fills while one runs. Several
   runners share one queue; each takes a batch when it is idle. `max_wait_s` lets a batch wait for more
   items, counted from its oldest item; it is 0 by default.
2. Two lanes, interactive and bulk, each first in, first out. Interactive items are taken first, and bulk
   items fill their batch, unless that makes it more than 1.5 times as long. While both wait, at least one of
   eight items taken is bulk (`BULK_INTERVAL`). No polling, no timer while idle, no busy loop.
3. An item whose caller was cancelled or whose deadline has passed is dropped before the batch is formed.
   The other items of the batch are not affected.
4. Every future resolves: with a result, with an error of its own, or with the shutdown error. A wrong number
   of results fails the batch. If a batch raises an exception, its halves are retried, so that only the item
   that causes the error fails. If the device is out of memory, the batch size limit is reduced.
5. An item is rejected at once, with a retry time from the measured rate, if the queue is full, or if the
   estimated wait exceeds its limit or the item's deadline; bulk items do not count for interactive ones. A
   reservation holds a slot for an item that does not exist yet. A limited number of reservations are started
   at a time, at most half of them bulk; the others wait, in the order of line 2. A reservation that is
   suspended, because its client is slow, needs another admission.
6. `close` rejects new items, finishes the accepted ones, and returns within a time limit.

`queue` implements lines 1 to 3 (which item runs when) with `lanes`, `batcher` lines 4 to 6 (how each item
ends), `reservation` the place of a request, `cost_model` the measured rate, and `warmup` the first
batches. The package depends on asyncio and the error classes only: not on HTTP, torch or metrics.
"""

from resnet_service.batching.batcher import MicroBatcher, Runner
from resnet_service.batching.lanes import BULK_INTERVAL, Lane
from resnet_service.batching.queue import BatchResult, QueueItem
from resnet_service.batching.reservation import ConcurrencyLimiter, Reservation
from resnet_service.batching.warmup import warm_up

__all__ = [
    "BULK_INTERVAL",
    "BatchResult",
    "ConcurrencyLimiter",
    "Lane",
    "MicroBatcher",
    "QueueItem",
    "Reservation",
    "Runner",
    "warm_up",
]
