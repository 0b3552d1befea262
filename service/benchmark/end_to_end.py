"""Measure all of a picture's way: bytes of a JPEG, decoding and resizing in several threads, the model."""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Final

from service import offline
from service.benchmark.results import EndToEndRow, Variant
from service.errors import BenchmarkImpossible
from service.images import drawn
from service.models import Model
from service.offline import Outcome, Source
from service.runtimes import Runtime

_DIFFERENT: Final = 64
"""So many pictures are made; more are these again."""
_WARM_UP_BATCHES: Final = 2
_SAMPLE: Final = 512
"""Pictures whose preprocessing alone is measured."""


def measure(
    model: Model,
    runtime: Runtime,
    variant: Variant,
    *,
    pictures: int,
    batch_size: int,
    workers: int,
    watch: Callable[[Iterable[Outcome]], Iterable[Outcome]] = iter,
) -> EndToEndRow:
    """Classify generated JPEGs of 500x375; `watch` is put around the outcomes, a progress bar, say.

    Preprocessing is measured on its own before that, with one worker and with all. Raises BenchmarkImpossible
    where a batch does not fit the device, and where a picture fails.
    """
    sources = list(_sources(pictures))
    sample = sources[:_SAMPLE]
    classify = partial(
        offline.classify,
        model=model,
        runtime=runtime,
        top_k=1,
        batch_size=batch_size,
        workers=workers,
        say=_not_another_size,
    )
    _checked(classify(sources[: _WARM_UP_BATCHES * batch_size]))
    one, all_of_them = (_preprocessed_per_second(sample, model, count) for count in (1, workers))
    started = time.perf_counter()
    _checked(watch(classify(sources)))
    seconds = time.perf_counter() - started
    return EndToEndRow(
        model=model.name,
        variant=variant,
        batch_size=batch_size,
        pictures=pictures,
        workers=workers,
        seconds=seconds,
        images_per_second=pictures / seconds,
        preprocessing_per_second=all_of_them,
        preprocessing_with_one_worker=one,
    )


def _not_another_size(message: str) -> None:
    raise BenchmarkImpossible(f"{message} would measure something else; give that as --batch-size")


def _checked(outcomes: Iterable[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.error is not None:
            raise BenchmarkImpossible(f"{outcome.name}: {outcome.error}")


def _sources(count: int) -> Iterator[Source]:
    made = [drawn.noise(seed=seed) for seed in range(min(count, _DIFFERENT))]
    for number in range(count):
        yield Source(f"noise {number}", partial(bytes, made[number % len(made)]))


def _preprocessed_per_second(sources: list[Source], model: Model, workers: int) -> float:
    started = time.perf_counter()
    decoded = offline.decoded(sources, model.preprocessing, workers=workers, ahead=4 * workers)
    count = sum(1 for _ in islice(decoded, len(sources)))
    return count / (time.perf_counter() - started)
