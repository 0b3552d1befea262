"""The micro-batcher: many concurrent callers in, few batches out.

Its contract, a test for each line in tests/unit/test_batching.py:

1. Work-conserving. As soon as a runner is free, whatever waits goes, up to `max_batch`, or to the size
   from which larger batches are no faster an item; the next batch fills while one runs. Several runners
   feed from one queue, each pulling when it is free. `max_wait_s` counts from the oldest item, 0 by default.
2. First in, first out; no polling, no timer when idle, no busy loop.
3. A caller that has gone (cancelled, or past its deadline) is dropped before the batch is formed;
   its batch-mates do not notice.
4. Every future resolves: with its result, its own error, or the shutdown error. A wrong number of
   results fails that batch. An exception fails that batch only, after its halves were retried, so
   that one poisonous item fails alone; out-of-memory shrinks the batch instead.
5. A full queue rejects at once, saying when to come back at the measured rate; a deadline that
   cannot be met is rejected early.
6. `close` rejects new work, finishes what was accepted, and returns within a bound.

Lines 1 to 3, which item goes when, are `queue`; 4 to 6, what becomes of it, are `batcher`; the measured rate
is `duration`, and the largest batch worth taking `warming`. Knows asyncio, the error tree and the clock; no
HTTP, no torch, no metrics.
"""

from resnet_service.batching.batcher import MicroBatcher, Reservation, Runner
from resnet_service.batching.queue import BatchResult
from resnet_service.batching.warmup import WarmupResult, warm_up

__all__ = ["BatchResult", "MicroBatcher", "Reservation", "Runner", "WarmupResult", "warm_up"]
