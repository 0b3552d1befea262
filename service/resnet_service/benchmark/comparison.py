"""Compare models on the same images: latency, throughput, size, agreement and accuracy."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

import torch

from resnet_service.benchmark import model_benchmark
from resnet_service.benchmark.results import Variant
from resnet_service.devices import Precision
from resnet_service.diagnostics.model_summary import summarize_model
from resnet_service.errors import BenchmarkError
from resnet_service.inference import ClassificationResult, ImageInput, classify_images
from resnet_service.models import Model
from resnet_service.models.class_folders import class_folder, classes_of_folder
from resnet_service.runtimes.selection import RuntimeName, check_options
from resnet_service.schemas import Prediction

_BATCH_SIZES: Final = (1, 8)
_ITERATIONS: Final = 10

ProgressFn = Callable[[str, Iterable[ClassificationResult]], Iterable[ClassificationResult]]


@dataclass(frozen=True)
class ModelComparison:
    """The results of one model.

    Attributes:
        model: its name.
        variant: the options that it ran with.
        latency_ms: p50 for one image.
        images_per_second: for the faster of the two measured batch sizes, 1 and 8.
        parameters: None for a quantized model.
        file_bytes: size of the weights' file, None if it is not downloaded.
        agreement: share of images, 0..1, with the same best label as the first model.
        accuracy: share of labeled images, 0..1, that are correct; None without labeled images.
        labeled: images in a folder that is named after one of the model's classes.

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


def check_models(models: Mapping[str, Model], requested: Variant) -> None:
    """Check that each of the models, by name, can run as `requested`, before one is measured.

    Raises BenchmarkError, and what `check_options` raises.
    """
    device = torch.device(requested.device)
    runtime, precision = cast(RuntimeName, requested.runtime), cast(Precision, requested.precision)
    for name, model in models.items():
        if precision == "int8" and not model.is_quantized:
            raise BenchmarkError(f"{name} is not quantized: see resnet-service quantize --help")
        check_options(device, runtime, precision, model)


def compare(
    models: Mapping[str, Model],
    images: Sequence[ImageInput],
    requested: Variant,
    *,
    batch_size: int,
    workers: int,
    on_progress: ProgressFn = lambda _, results: results,
    on_message: Callable[[str], None] = lambda _: None,
) -> Iterator[ModelComparison]:
    """Yield the results of each of `models`, by name.

    `on_progress` is called with a model's name and its results, and returns the results; it sees the images
    that cannot be read. Raises BenchmarkError if a model can classify none of the images, and what
    `create_variant_runtime` raises.
    """
    reference: Mapping[int, str] = {}
    for name, model in models.items():
        runtime, variant = model_benchmark.create_variant_runtime(model, requested)
        rows = list(
            model_benchmark.benchmark_model(model, runtime, variant, _BATCH_SIZES, _ITERATIONS, on_message)
        )
        if not rows:
            raise BenchmarkError(f"{name} does not fit the device, even for one image")
        results = classify_images(
            images, model, runtime, top_k=1, batch_size=batch_size, workers=workers, on_message=on_message
        )
        best = _best_predictions(name, on_progress(name, results))
        reference = reference or {index: prediction.label for index, prediction in best.items()}
        agreeing = sum(reference.get(index) == prediction.label for index, prediction in best.items())
        is_correct = list(_check_labels(images, model, best))
        summary = summarize_model(name)
        yield ModelComparison(
            model=name,
            variant=variant,
            latency_ms=rows[0].p50_ms,
            images_per_second=max(row.images_per_second for row in rows),
            parameters=summary.parameters,
            file_bytes=summary.file_bytes,
            agreement=agreeing / len(best),
            accuracy=sum(is_correct) / len(is_correct) if is_correct else None,
            labeled=len(is_correct),
        )


def _best_predictions(name: str, results: Iterable[ClassificationResult]) -> dict[int, Prediction]:
    """Return the best prediction of each image that could be classified, by its index."""
    best: dict[int, Prediction] = {}
    errors: list[str] = []
    for index, result in enumerate(results):
        if result.error is None:
            best[index] = result.ranking[0]
        else:
            errors.append(f"{result.name}: {result.error}")
    if not best:
        raise BenchmarkError(f"{name} could classify none of the images; {errors[0]}")
    return best


def _check_labels(
    images: Sequence[ImageInput], model: Model, best: Mapping[int, Prediction]
) -> Iterator[bool]:
    """Yield whether the prediction is correct for each image in a folder that is named after a class."""
    for index, prediction in best.items():
        if true_class := class_folder(images[index].name, model.labels):
            yield prediction.class_id in classes_of_folder(true_class, model.labels)
