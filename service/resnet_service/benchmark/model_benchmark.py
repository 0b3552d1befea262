"""Measure a model on crops that are already in memory, in each requested combination of options."""

import asyncio
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Final, cast

import numpy as np
import torch

from resnet_service.benchmark.results import MemoryFormat, ModelRow, Variant
from resnet_service.benchmark.timing import time_batches
from resnet_service.devices import Precision
from resnet_service.errors import DeviceOutOfMemoryError
from resnet_service.images import Crop
from resnet_service.models import Model
from resnet_service.runtimes import Runtime
from resnet_service.runtimes.quantization import quantize
from resnet_service.runtimes.selection import RuntimeName, create_runtimes

_CALIBRATION_IMAGES: Final = 32
"""Noise images for quantization: sufficient for measuring speed, not for accuracy."""

_DISTINCT_CROPS: Final = 64
"""Larger batches repeat these crops."""


def variants(
    devices: Sequence[str],
    runtimes: Sequence[str],
    precisions: Sequence[str],
    memory_formats: Sequence[MemoryFormat],
    compiled: Sequence[bool],
) -> Iterator[Variant]:
    """Yield every combination; "auto" is resolved by `create_variant_runtime`."""
    for combination in product(devices, runtimes, precisions, memory_formats, compiled):
        yield Variant(*combination)


def create_variant_runtime(model: Model, variant: Variant) -> tuple[Runtime, Variant]:
    """Create the runtime for a variant; returns it with the variant in which "auto" is resolved.

    A floating-point model is quantized for int8. Raises DeviceUnavailableError for a combination that is not
    supported.
    """
    gc.collect()  # the previous variant's device memory may be part of a reference cycle
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if variant.precision == "int8" and not model.is_quantized:
        model = quantize(model, np.stack(random_crops(model, _CALIBRATION_IMAGES))).model
    [runtime] = create_runtimes(
        model,
        [torch.device(variant.device)],
        name=cast(RuntimeName, variant.runtime),
        precision=cast(Precision, variant.precision),
        streams_per_device=1,
        compiled=variant.compiled,
        channels_last=variant.memory_format == "channels_last",
    )
    return runtime, replace(variant, runtime=runtime.name, precision=runtime.precision)


def benchmark_model(
    model: Model,
    runtime: Runtime,
    variant: Variant,
    batch_sizes: Sequence[int],
    iterations: int,
    on_message: Callable[[str], None] = lambda _: None,
) -> Iterator[ModelRow]:
    """Yield a row per batch size in ascending order.

    Stops at the first batch size that does not fit the device, after a call of `on_message`.
    """
    crops = random_crops(model, min(_DISTINCT_CROPS, max(batch_sizes)))
    crops *= max(batch_sizes) // len(crops) + 1

    async def run(batch_size: int) -> None:
        runtime.run(crops[:batch_size], 1)

    for batch_size in sorted(batch_sizes):
        try:
            [row] = asyncio.run(time_batches(run, [batch_size], iterations))
        except DeviceOutOfMemoryError as error:
            on_message(f"{variant}: {error} with {batch_size} images")
            return
        yield ModelRow(model=model.name, variant=variant, **asdict(row))


def random_crops(model: Model, count: int) -> list[Crop]:
    """Return `count` noise images, uint8 [S, S, 3], of the size of the model's input; deterministic."""
    side = model.preprocessing.crop
    random = np.random.default_rng(0)
    return list(random.integers(0, 256, (count, side, side, 3), dtype=np.uint8))
