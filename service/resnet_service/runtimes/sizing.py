"""Choose how many batches run at the same time on a CPU, and how large they get, from the work per image.

Nothing is measured. A duration depends on what else the machine runs at that moment, while the choice lasts
as long as the process: beside busy processes, the measured limit was 2, 4, 8 or 32 for one model on one
machine. Counted operations give the same choice at each start, in each replica, and in a reload under load.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from resnet_service.machine import available_cpus
from resnet_service.models import Model
from resnet_service.runtimes.runtime import Runtime

DEFAULT_MAX_BATCH: Final = 32
"""The limit on a GPU, and the highest limit on a CPU, unless it is set."""

_BATCH_OPERATIONS_PER_CORE: Final = 12e9
"""Work in a batch for each core that runs it: 65 ms in bf16, 120 ms in fp32 (Xeon with AMX, ResNet-50).

Larger batches are hardly faster per image, and images wait longer for the running batch and for their own.
"""
_SMALL_IMAGE_OPERATIONS_PER_CORE: Final = 1e9
"""Models with less work per image get one stream: Python's cost per batch dominates.

Two streams were 0.8 times as fast as one for a ResNet-10 of 32 x 32 pixels, and 1.05 times for ResNet-50.
"""


@dataclass(frozen=True)
class BatchLimit:
    """The largest batch that is formed, and why."""

    size: int
    reason: str


def has_small_images(model: Model, threads: int | None) -> bool:
    """Return whether an image is too little work for `threads` threads (default: all available CPUs)."""
    return model.operations < _SMALL_IMAGE_OPERATIONS_PER_CORE * (threads or available_cpus())


def describe_operations(model: Model) -> str:
    """Return the work per image for a log."""
    return f"{model.operations / 1e9:.3g} GFLOP per image"


def limit_batches(
    model: Model, runtimes: Sequence[Runtime], max_batch: int | None = None, threads: int | None = None
) -> BatchLimit:
    """Return the largest batch for the runtimes of `model`, which share `threads` threads on a CPU.

    A `max_batch` that is set is the limit. Otherwise it is the power of two with the amount of work that
    keeps the cores busy for a fraction of a second.
    """
    if max_batch is not None:
        return BatchLimit(max_batch, "max_batch is set")
    streams = sum(runtime.device == "cpu" for runtime in runtimes)
    if not streams:
        return BatchLimit(DEFAULT_MAX_BATCH, "the device is not a CPU")
    cores = (threads or available_cpus()) / streams
    images = cores * _BATCH_OPERATIONS_PER_CORE / max(1, model.operations)
    size = min(DEFAULT_MAX_BATCH, 1 << max(0, round(math.log2(images))))
    return BatchLimit(size, f"{describe_operations(model)}, {cores:.3g} cores per stream")
