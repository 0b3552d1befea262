"""Measure a model alone, in every way that is asked for: batches of pixels that are in memory already."""

import asyncio
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Final, cast

import numpy as np
import torch

from service import bench
from service.benchmark.results import MemoryFormat, ModelRow, Variant
from service.errors import DeviceOutOfMemory
from service.hardware import Precision
from service.images import Crop
from service.models import Model
from service.quantisation import quantise
from service.runtimes import Runtime
from service.runtimes.selection import Name, open_runtimes

_CALIBRATION: Final = 32
"""Pictures of noise to quantise on: enough for the speed, not for the accuracy."""

_DIFFERENT: Final = 64


def variants(
    devices: Sequence[str],
    runtimes: Sequence[str],
    precisions: Sequence[str],
    memory_formats: Sequence[MemoryFormat],
    compiled: Sequence[bool],
) -> Iterator[Variant]:
    """Yield every combination; "auto" stands for what would be chosen."""
    for combination in product(devices, runtimes, precisions, memory_formats, compiled):
        yield Variant(*combination)


def opened(model: Model, variant: Variant) -> tuple[Runtime, Variant]:
    """Put `model` on the variant's device, and return with it the variant as it came out, without "auto".

    A model in floating point is quantised for int8. Raises DeviceUnavailable for a combination that there
    is not.
    """
    gc.collect()  # what the last variant held on the device may be part of a cycle
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if variant.precision == "int8" and model.graph is None:
        model = quantise(model, np.stack(noise(model, _CALIBRATION))).model
    [runtime] = open_runtimes(
        model,
        [torch.device(variant.device)],
        name=cast(Name, variant.runtime),
        precision=cast(Precision, variant.precision),
        instances=1,
        compiled=variant.compiled,
        channels_last=variant.memory_format == "channels_last",
    )
    return runtime, replace(variant, runtime=runtime.name, precision=runtime.precision)


def measure(
    model: Model,
    runtime: Runtime,
    variant: Variant,
    batch_sizes: Sequence[int],
    iterations: int,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[ModelRow]:
    """Yield a row for each batch size that fits the device; `say` is told of the first that does not."""
    made = noise(model, min(_DIFFERENT, max(batch_sizes)))
    pictures = made * (max(batch_sizes) // len(made) + 1)

    async def run(batch_size: int) -> None:
        runtime.run(pictures[:batch_size], 1)

    for batch_size in sorted(batch_sizes):
        try:
            [row] = asyncio.run(bench.measure(run, [batch_size], iterations))
        except DeviceOutOfMemory as error:
            say(f"{variant}: {error} at {batch_size} pictures")
            return
        yield ModelRow(model=model.name, variant=variant, **asdict(row))


def noise(model: Model, count: int) -> list[Crop]:
    """Return pixels of the size that `model` takes."""
    side = model.preprocessing.crop
    random = np.random.default_rng(0)
    return list(random.integers(0, 256, (count, side, side, 3), dtype=np.uint8))
