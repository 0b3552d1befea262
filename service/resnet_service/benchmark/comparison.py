"""Models side by side on the same images: how quick, how large, how often of one mind, how often right."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from resnet_service.benchmark import model_benchmark
from resnet_service.benchmark.results import Variant
from resnet_service.diagnostics.model_summary import summarize_model
from resnet_service.errors import BenchmarkError
from resnet_service.inference import ClassificationResult, ImageInput, classify_images, labels_from_path
from resnet_service.models import Model, Prediction, load_model

_BATCH_SIZES: Final = (1, 8)
_ITERATIONS: Final = 10

ProgressFn = Callable[[str, Iterable[ClassificationResult]], Iterable[ClassificationResult]]


@dataclass(frozen=True)
class ModelComparison:
    """A model's figures. `latency_ms` is for one image, p50; `images_per_second` for the better batch size.

    `agreement` is the share of images, 0..1, of which it says the same as the first model; `accuracy` the
    share of right answers among the `labeled`, whose names tell a class it knows; None where there are none.
    """

    model: str
    variant: Variant
    latency_ms: float
    images_per_second: float
    parameters: int | None
    file_bytes: int | None
    agreement: float
    accuracy: float | None
    labeled: int


def compare(
    names: Sequence[str],
    sources: Sequence[ImageInput],
    wanted: Variant,
    *,
    batch_size: int,
    workers: int,
    on_progress: ProgressFn = lambda _, outcomes: outcomes,
    on_message: Callable[[str], None] = lambda _: None,
) -> Iterator[ModelComparison]:
    """Yield each model's figures; `watch`, told the model's name, is put around its outcomes.

    Images that cannot be read are told to `say`, once. Raises BenchmarkError where none can, and what
    `load_model` and `alone.opened` raise.
    """
    first: dict[int, str] = {}
    for name in names:
        model = load_model(name)
        if wanted.precision == "int8" and model.openvino_model is None:
            raise BenchmarkError(f"{name} is in floating point: see resnet-service quantize --help")
        runtime, variant = model_benchmark.create_variant_runtime(model, wanted)
        rows = list(
            model_benchmark.benchmark_model(model, runtime, variant, _BATCH_SIZES, _ITERATIONS, on_message)
        )
        if not rows:
            raise BenchmarkError(f"{name} does not fit the device, even for one image")
        outcomes = classify_images(
            sources, model, runtime, top_k=1, batch_size=batch_size, workers=workers, on_message=on_message
        )
        best: dict[int, Prediction] = {}
        errors: list[str] = []
        for number, one in enumerate(on_progress(name, outcomes)):
            if one.error is None:
                best[number] = one.ranking[0]
            else:
                errors.append(f"{one.name}: {one.error}")
        if not best:
            raise BenchmarkError(f"{name} could classify none of the images; {errors[0]}")
        first = first or {number: ranked.label for number, ranked in best.items()}
        right = list(_correct(sources, model, best))
        facts = summarize_model(name)
        yield ModelComparison(
            model=name,
            variant=variant,
            latency_ms=rows[0].p50_ms,
            images_per_second=max(row.images_per_second for row in rows),
            parameters=facts.parameters,
            file_bytes=facts.file_bytes,
            agreement=sum(first.get(number) == ranked.label for number, ranked in best.items()) / len(best),
            accuracy=sum(right) / len(right) if right else None,
            labeled=len(right),
        )


def _correct(sources: Sequence[ImageInput], model: Model, best: dict[int, Prediction]) -> Iterator[bool]:
    """Yield, for each image whose name tells its class, whether the answer is that class."""
    classes = partial(labels_from_path, labels=model.labels)
    for number, ranked in best.items():
        if told := classes(sources[number].name):
            yield ranked.class_id in told
