"""`resnet-service classify`: what images show, without a server."""

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from resnet_service.cli.errors import exit_on_service_error
from resnet_service.cli.options import execution_options, model_option, open_model

if TYPE_CHECKING:
    from resnet_service.inference import ClassificationResult, ImageInput


@click.command()
@click.argument("images", nargs=-1)
@model_option
@click.option("--top-k", type=click.IntRange(1), default=5, help="Classes for each image, at most.")
@execution_options
@click.option("--batch-size", type=click.IntRange(1), default=32, help="Images in a batch, at most.")
@click.option(
    "--workers", type=click.IntRange(1), help="WorkerPool that decode.  [default: one for each core]"
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each image, a line each.")
@click.option("--download-demo", is_flag=True, help="Classify known photographs of a dog, cats and a car.")
def classify(
    images: tuple[str, ...],
    model: str,
    weights: str | None,
    top_k: int,
    batch_size: int,
    workers: int | None,
    as_json: bool,
    download_demo: bool,
    **execution: Any,
) -> None:
    """Classify IMAGES: files, folders with all below them, patterns, URLs, or - for standard input.

    Without any, three images that come with the program. What cannot be read is named and skipped; the exit
    status is then 1.

    \b
    Examples:
      resnet-service classify dog.jpg
      resnet-service classify photos 'more/**/*.png' --top-k 1
      resnet-service classify --model bundled
      curl -s https://example.org/cat.jpg | resnet-service classify - --json
    """
    from tqdm import tqdm

    from resnet_service.inference import classify_images
    from resnet_service.machine import available_cpus

    with exit_on_service_error():
        opened = open_model(model, weights, **execution)
        outcomes = classify_images(
            _sources(images, download_demo),
            opened.model,
            opened.runtime,
            top_k=min(top_k, len(opened.model.labels)),
            batch_size=batch_size,
            workers=workers or available_cpus(),
            on_message=lambda message: click.echo(message, err=True),
        )
        # Where the answers themselves show how far it is, a bar would only be in their way.
        hidden = True if sys.stdout.isatty() else None
        read, failed, device_ms = 0, 0, 0.0
        for outcome in tqdm(outcomes, desc="classifying", unit="image", disable=hidden):
            read += outcome.error is None
            failed += outcome.error is not None
            device_ms += outcome.device_ms
            _print_json(outcome) if as_json else _print(outcome)
    if not as_json and read:
        click.echo(f"\n{opened}: {read:,} images, {device_ms / read:.1f} ms each on the device", err=True)
    if failed:
        click.echo(f"{failed:,} of {read + failed:,} images could not be classified", err=True)
        sys.exit(1)


def _sources(images: Iterable[str], download_demo: bool) -> "Iterator[ImageInput]":
    from resnet_service.inference import demo, discover_inputs

    named = discover_inputs(images)
    if download_demo:
        return chain(named, discover_inputs(demo.PHOTOGRAPHS))
    return named if images else demo.demo_images()


def _print(outcome: "ClassificationResult") -> None:
    name = click.style(click.format_filename(outcome.name), bold=True)
    if outcome.error is not None:
        click.echo(f"{name}: {click.style(outcome.error, fg='red')}", err=True)
        return
    click.echo(f"{name}  {outcome.decode_ms:.1f} ms decoding, {outcome.device_ms:.1f} ms on the device")
    width = max(len(ranked.label) for ranked in outcome.ranking)
    for rank, ranked in enumerate(outcome.ranking, 1):
        bar = "█" * round(ranked.probability * 20)
        shown = f"{rank:3}  {ranked.label:{width}}  {ranked.probability:6.1%}"
        click.echo(f"{shown}  {click.style(bar, fg='blue')}")


def _print_json(outcome: "ClassificationResult") -> None:
    line: dict[str, Any] = {"image": outcome.name}
    if outcome.error is not None:
        line["error"] = outcome.error
    else:
        line["predictions"] = [
            {"class_id": ranked.class_id, "label": ranked.label, "probability": ranked.probability}
            for ranked in outcome.ranking
        ]
        line["timing_ms"] = {"decode": round(outcome.decode_ms, 3), "device": round(outcome.device_ms, 3)}
    click.echo(json.dumps(line))
