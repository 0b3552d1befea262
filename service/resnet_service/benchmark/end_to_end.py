"""Measure the full path of an image: JPEG bytes, decoding and resizing in several threads, the model."""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Final

from resnet_service.benchmark.results import EndToEndRow, Variant
from resnet_service.errors import BenchmarkError
from resnet_service.images.examples import noise_jpeg
from resnet_service.inference import ClassificationResult, ImageInput, classify_images, decode_all
from resnet_service.models import Model
from resnet_service.runtimes import Runtime

_DISTINCT_IMAGES: Final = 64
"""Longer runs repeat these images."""

_WARMUP_BATCHES: Final = 2
_PREPROCESSING_IMAGES: Final = 512
"""Images with which preprocessing without a model is measured."""


def benchmark_end_to_end(
    model: Model,
    runtime: Runtime,
    variant: Variant,
    *,
    images: int,
    batch_size: int,
    workers: int,
    on_progress: Callable[[Iterable[ClassificationResult]], Iterable[ClassificationResult]] = iter,
) -> EndToEndRow:
    """Classify generated JPEGs of 500x375 pixels; `on_progress` wraps the results, for a progress bar.

    Before that, measures preprocessing without the model, with one worker and with all. Raises BenchmarkError
    if a batch does not fit the device, or if an image fails.
    """
    inputs = list(_noise_inputs(images))
    sample = inputs[:_PREPROCESSING_IMAGES]
    classify = partial(
        classify_images,
        model=model,
        runtime=runtime,
        top_k=1,
        batch_size=batch_size,
        workers=workers,
        on_message=_reject_smaller_batch,
    )
    _raise_errors(classify(inputs[: _WARMUP_BATCHES * batch_size]))
    one_worker, all_workers = (_preprocessing_rate(sample, model, count) for count in (1, workers))
    started = time.perf_counter()
    _raise_errors(on_progress(classify(inputs)))
    seconds = time.perf_counter() - started
    return EndToEndRow(
        model=model.name,
        variant=variant,
        batch_size=batch_size,
        images=images,
        workers=workers,
        seconds=seconds,
        images_per_second=images / seconds,
        preprocessing_per_second=all_workers,
        preprocessing_with_one_worker=one_worker,
    )


def _reject_smaller_batch(message: str) -> None:
    raise BenchmarkError(f"{message}, which would measure another batch size; use it as --batch-size")


def _raise_errors(results: Iterable[ClassificationResult]) -> None:
    for result in results:
        if result.error is not None:
            raise BenchmarkError(f"{result.name}: {result.error}")


def _noise_inputs(count: int) -> Iterator[ImageInput]:
    jpegs = [noise_jpeg(seed=seed) for seed in range(min(count, _DISTINCT_IMAGES))]
    for number in range(count):
        yield ImageInput(f"noise {number}", partial(bytes, jpegs[number % len(jpegs)]))


def _preprocessing_rate(inputs: list[ImageInput], model: Model, workers: int) -> float:
    started = time.perf_counter()
    decoded = decode_all(inputs, model.preprocessing, workers=workers, ahead=4 * workers)
    count = sum(1 for _ in islice(decoded, len(inputs)))
    return count / (time.perf_counter() - started)
