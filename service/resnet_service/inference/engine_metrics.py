"""The gauges of an engine: its queue, its devices and its model."""

from collections.abc import Sequence
from functools import partial
from typing import Literal, TypeVar

from resnet_service import __version__
from resnet_service.batching import Lane, MicroBatcher
from resnet_service.metrics import Metrics
from resnet_service.models import ModelVersion
from resnet_service.runtimes import Runtime

Item = TypeVar("Item")
Result = TypeVar("Result")


def bind_engine(
    metrics: Metrics,
    key: ModelVersion,
    batcher: MicroBatcher[Item, Result],
    runtimes: Sequence[Runtime],
    max_queue_wait_s: float,
) -> None:
    """Make the gauges of a version and of its devices report these, and not those bound before."""
    metrics.add_model(*key)
    for lane in Lane:
        depth = metrics.queue_depth.labels(*key, lane.name.lower())
        depth.set_function(partial(batcher.depth, lane))
        wait = metrics.queue_wait.labels(*key, lane.name.lower())
        wait.set_function(partial(batcher.estimate_wait, lane))
    metrics.requests_waiting.labels(*key).set_function(lambda: batcher.waiting)
    metrics.queue_wait_limit.labels(*key).set(max_queue_wait_s)
    metrics.largest_batch.labels(*key).set_function(lambda: batcher.largest_batch)
    metrics.device_streams.labels(*key).set(len(runtimes))
    for runtime in runtimes:  # runtimes on the same device report the same values
        used = metrics.device_memory.labels(runtime.device)
        used.set_function(partial(_memory, runtime, "used"))
        limit = metrics.device_memory_limit.labels(runtime.device)
        limit.set_function(partial(_memory, runtime, "limit"))
        info = (*key, runtime.device, runtime.precision, runtime.name, __version__)
        metrics.model_info.labels(*info).set(1)


def _memory(runtime: Runtime, part: Literal["used", "limit"]) -> int:
    memory = runtime.memory()
    return 0 if memory is None else getattr(memory, part)
