"""Measure a model alone, in every way that is asked for: batches of pixels that are in memory already."""

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

_CALIBRATION: Final = 32
"""Images of noise to quantize on: enough for the speed, not for the accuracy."""

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


def create_variant_runtime(model: Model, variant: Variant) -> tuple[Runtime, Variant]:
    """Put `model` on the variant's device, and return with it the variant as it came out, without "auto".

    A model in floating point is quantized for int8. Raises DeviceUnavailableError for a combination that there
    is not.
    """
    gc.collect()  # what the last variant held on the device may be part of a cycle
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if variant.precision == "int8" and model.openvino_model is None:
        model = quantize(model, np.stack(random_crops(model, _CALIBRATION))).model
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
    """Yield a row for each batch size that fits the device; `say` is told of the first that does not."""
    made = random_crops(model, min(_DIFFERENT, max(batch_sizes)))
    images = made * (max(batch_sizes) // len(made) + 1)

    async def run(batch_size: int) -> None:
        runtime.run(images[:batch_size], 1)

    for batch_size in sorted(batch_sizes):
        try:
            [row] = asyncio.run(time_batches(run, [batch_size], iterations))
        except DeviceOutOfMemoryError as error:
            on_message(f"{variant}: {error} at {batch_size} images")
            return
        yield ModelRow(model=model.name, variant=variant, **asdict(row))


def random_crops(model: Model, count: int) -> list[Crop]:
    """Return pixels of the size that `model` takes."""
    side = model.preprocessing.crop
    random = np.random.default_rng(0)
    return list(random.integers(0, 256, (count, side, side, 3), dtype=np.uint8))
