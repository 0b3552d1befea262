"""Models side by side on the same pictures: how quick, how large, how often of one mind, how often right."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from service import models, offline
from service.benchmark import alone
from service.benchmark.results import Variant
from service.errors import BenchmarkImpossible
from service.inspection import inspect
from service.models import Model, Ranked
from service.offline import Outcome, Source

_BATCH_SIZES: Final = (1, 8)
_ITERATIONS: Final = 10

Watch = Callable[[str, Iterable[Outcome]], Iterable[Outcome]]


@dataclass(frozen=True)
class Compared:
    """A model's figures. `latency_ms` is for one picture, p50; `images_per_second` for the better batch size.

    `agreement` is the share of pictures, 0..1, of which it says the same as the first model; `accuracy` the
    share of right answers among the `labelled`, whose names tell a class it knows; None where there are none.
    """

    model: str
    variant: Variant
    latency_ms: float
    images_per_second: float
    parameters: int | None
    file_bytes: int | None
    agreement: float
    accuracy: float | None
    labelled: int


def compare(
    names: Sequence[str],
    sources: Sequence[Source],
    wanted: Variant,
    *,
    batch_size: int,
    workers: int,
    watch: Watch = lambda _, outcomes: outcomes,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Compared]:
    """Yield each model's figures; `watch`, told the model's name, is put around its outcomes.

    Pictures that cannot be read are told to `say`, once. Raises BenchmarkImpossible where none can, and what
    `models.load` and `alone.opened` raise.
    """
    first: dict[int, str] = {}
    for name in names:
        model = models.load(name)
        if wanted.precision == "int8" and model.graph is None:
            raise BenchmarkImpossible(f"{name} is in floating point: see resnet-service quantize --help")
        runtime, variant = alone.opened(model, wanted)
        rows = list(alone.measure(model, runtime, variant, _BATCH_SIZES, _ITERATIONS, say))
        if not rows:
            raise BenchmarkImpossible(f"{name} does not fit the device, even for one picture")
        outcomes = offline.classify(
            sources, model, runtime, top_k=1, batch_size=batch_size, workers=workers, say=say
        )
        best: dict[int, Ranked] = {}
        errors: list[str] = []
        for number, one in enumerate(watch(name, outcomes)):
            if one.error is None:
                best[number] = one.ranking[0]
            else:
                errors.append(f"{one.name}: {one.error}")
        if not best:
            raise BenchmarkImpossible(f"{name} could classify none of the pictures; {errors[0]}")
        first = first or {number: ranked.label for number, ranked in best.items()}
        right = list(_right(sources, model, best))
        facts = inspect(name)
        yield Compared(
            model=name,
            variant=variant,
            latency_ms=rows[0].p50_ms,
            images_per_second=max(row.images_per_second for row in rows),
            parameters=facts.parameters,
            file_bytes=facts.file_bytes,
            agreement=sum(first.get(number) == ranked.label for number, ranked in best.items()) / len(best),
            accuracy=sum(right) / len(right) if right else None,
            labelled=len(right),
        )


def _right(sources: Sequence[Source], model: Model, best: dict[int, Ranked]) -> Iterator[bool]:
    """Yield, for each picture whose name tells its class, whether the answer is that class."""
    classes = partial(offline.classes_in_name, labels=model.labels)
    for number, ranked in best.items():
        if told := classes(sources[number].name):
            yield ranked.class_id in told
