"""Measure all of an image's way: bytes of a JPEG, decoding and resizing in several threads, the model."""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Final

from resnet_service.benchmark.results import EndToEndRow, Variant
from resnet_service.errors import BenchmarkError
from resnet_service.images import synthetic
from resnet_service.inference import ClassificationResult, ImageInput, classify_images, decode_all
from resnet_service.models import Model
from resnet_service.runtimes import Runtime

_DIFFERENT: Final = 64
"""So many images are made; more are these again."""
_WARM_UP_BATCHES: Final = 2
_SAMPLE: Final = 512
"""Images whose preprocessing alone is measured."""


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
    """Classify generated JPEGs of 500x375; `watch` is put around the outcomes, a progress bar, say.

    Preprocessing is measured on its own before that, with one worker and with all. Raises BenchmarkError
    where a batch does not fit the device, and where an image fails.
    """
    sources = list(_sources(images))
    sample = sources[:_SAMPLE]
    classify = partial(
        classify_images,
        model=model,
        runtime=runtime,
        top_k=1,
        batch_size=batch_size,
        workers=workers,
        on_message=_reject_smaller_batch,
    )
    _raise_errors(classify(sources[: _WARM_UP_BATCHES * batch_size]))
    one, all_of_them = (_preprocessed_per_second(sample, model, count) for count in (1, workers))
    started = time.perf_counter()
    _raise_errors(on_progress(classify(sources)))
    seconds = time.perf_counter() - started
    return EndToEndRow(
        model=model.name,
        variant=variant,
        batch_size=batch_size,
        images=images,
        workers=workers,
        seconds=seconds,
        images_per_second=images / seconds,
        preprocessing_per_second=all_of_them,
        preprocessing_with_one_worker=one,
    )


def _reject_smaller_batch(message: str) -> None:
    raise BenchmarkError(f"{message} would measure something else; give that as --batch-size")


def _raise_errors(outcomes: Iterable[ClassificationResult]) -> None:
    for outcome in outcomes:
        if outcome.error is not None:
            raise BenchmarkError(f"{outcome.name}: {outcome.error}")


def _sources(count: int) -> Iterator[ImageInput]:
    made = [synthetic.noise_jpeg(seed=seed) for seed in range(min(count, _DIFFERENT))]
    for number in range(count):
        yield ImageInput(f"noise {number}", partial(bytes, made[number % len(made)]))


def _preprocessed_per_second(sources: list[ImageInput], model: Model, workers: int) -> float:
    started = time.perf_counter()
    decoded = decode_all(sources, model.preprocessing, workers=workers, ahead=4 * workers)
    count = sum(1 for _ in islice(decoded, len(sources)))
    return count / (time.perf_counter() - started)
