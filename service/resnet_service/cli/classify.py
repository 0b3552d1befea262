"""`resnet-service classify`: classify images without a server."""

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from resnet_service.cli.common import (
    batch_size_option,
    echo_error,
    execution_options,
    exit_on_service_error,
    json_option,
    load_on_device,
    model_option,
    workers_option,
)

if TYPE_CHECKING:
    from resnet_service.inference import ClassificationResult
    from resnet_service.models import ModelSource


@click.command(short_help="Classify images without a server.")
@click.argument("inputs", metavar="[INPUT]...", nargs=-1)
@model_option
@click.option("--top-k", type=click.IntRange(1), default=5, help="Maximum number of classes per image.")
@execution_options
@batch_size_option(32)
@workers_option
@json_option("Print one JSON object per image and line.")
@click.option("--embeddings", "with_embeddings", is_flag=True, help="Add the embedding to each JSON object.")
def classify(
    inputs: tuple[str, ...],
    model: "ModelSource",
    top_k: int,
    batch_size: int,
    workers: int | None,
    as_json: bool,
    with_embeddings: bool,
    **execution: Any,
) -> None:
    """Classify images.

    INPUT is a file, a directory (searched recursively), a glob pattern, a URL, or - for standard input.
    Without INPUT, photographs of the package are classified. Images that cannot be read are reported and
    skipped; the exit status is then 1.

    \b
    Examples:
      resnet-service classify dog.jpg
      resnet-service classify photos 'more/**/*.png' --top-k 1
      resnet-service classify --model resnet50 --device cuda photos
      curl -s https://example.org/cat.jpg | resnet-service classify - --json
      resnet-service classify photos --json --embeddings
    """
    if with_embeddings and not as_json:
        raise click.UsageError("--embeddings needs --json")
    from tqdm import tqdm

    from resnet_service.inference import classify_images, discover_inputs, example_inputs
    from resnet_service.machine import available_cpus

    with exit_on_service_error():
        loaded = load_on_device(model, **execution)
        results = classify_images(
            discover_inputs(inputs, echo_error) if inputs else example_inputs(),
            loaded.model,
            loaded.runtime,
            top_k=min(top_k, len(loaded.model.labels)),
            batch_size=batch_size,
            workers=workers or available_cpus(),
            on_message=echo_error,
            with_embeddings=with_embeddings,
        )
        # On a terminal the results show the progress, and a bar would mix with them.
        is_bar_disabled = True if sys.stdout.isatty() else None
        succeeded, failed, device_ms = 0, 0, 0.0
        for result in tqdm(results, desc="classifying", unit="image", disable=is_bar_disabled):
            succeeded += result.error is None
            failed += result.error is not None
            device_ms += result.device_ms
            _print_json(result) if as_json else _print_text(result)
    if not as_json and succeeded:
        per_image_ms = device_ms / succeeded
        images = "1 image" if succeeded == 1 else f"{succeeded:,} images"
        click.echo(f"\n{loaded}: {images}, {per_image_ms:.1f} ms per image on the device", err=True)
    if failed:
        click.echo(f"{failed:,} of {succeeded + failed:,} images could not be classified", err=True)
        sys.exit(1)


def _print_text(result: "ClassificationResult") -> None:
    name = click.style(click.format_filename(result.name), bold=True)
    if result.error is not None:
        click.echo(f"{name}: {click.style(result.error, fg='red')}", err=True)
        return
    click.echo(f"{name}  {result.decode_ms:.1f} ms decoding, {result.device_ms:.1f} ms on the device")
    width = max(len(prediction.label) for prediction in result.ranking)
    for rank, prediction in enumerate(result.ranking, 1):
        bar = "█" * round(prediction.probability * 20)
        line = f"{rank:3}  {prediction.label:{width}}  {prediction.probability:6.1%}"
        click.echo(f"{line}  {click.style(bar, fg='blue')}")


def _print_json(result: "ClassificationResult") -> None:
    line: dict[str, Any] = {"image": result.name}
    if result.error is not None:
        line["error"] = result.error
    else:
        line["predictions"] = [
            {
                "class_id": prediction.class_id,
                "label": prediction.label,
                "probability": prediction.probability,
            }
            for prediction in result.ranking
        ]
        if result.embedding is not None:
            line["embedding"] = result.embedding.tolist()
        line["timing_ms"] = {"decode": round(result.decode_ms, 3), "device": round(result.device_ms, 3)}
    click.echo(json.dumps(line))
