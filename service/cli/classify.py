"""`resnet-service classify`: what pictures show, without a server."""

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from service.cli.options import execution_options, model_option, open_model
from service.cli.refusals import refusals

if TYPE_CHECKING:
    from service.offline import Outcome, Source


@click.command()
@click.argument("pictures", nargs=-1)
@model_option
@click.option("--top-k", type=click.IntRange(1), default=5, help="Classes for each picture, at most.")
@execution_options
@click.option("--batch-size", type=click.IntRange(1), default=32, help="Pictures in a batch, at most.")
@click.option("--workers", type=click.IntRange(1), help="Threads that decode.  [default: one for each core]")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each picture, a line each.")
@click.option("--download-demo", is_flag=True, help="Classify known photographs of a dog, cats and a car.")
def classify(
    pictures: tuple[str, ...],
    model: str,
    weights: str | None,
    top_k: int,
    batch_size: int,
    workers: int | None,
    as_json: bool,
    download_demo: bool,
    **execution: Any,
) -> None:
    """Classify PICTURES: files, folders with all below them, patterns, URLs, or - for standard input.

    Without any, three pictures that come with the program. What cannot be read is named and skipped; the exit
    status is then 1.

    \b
    Examples:
      resnet-service classify dog.jpg
      resnet-service classify photos 'more/**/*.png' --top-k 1
      resnet-service classify --model bundled
      curl -s https://example.org/cat.jpg | resnet-service classify - --json
    """
    from tqdm import tqdm

    from service import hardware, offline

    with refusals():
        opened = open_model(model, weights, **execution)
        outcomes = offline.classify(
            _sources(pictures, download_demo),
            opened.model,
            opened.runtime,
            top_k=min(top_k, len(opened.model.labels)),
            batch_size=batch_size,
            workers=workers or hardware.cores(),
            say=lambda message: click.echo(message, err=True),
        )
        # Where the answers themselves show how far it is, a bar would only be in their way.
        hidden = True if sys.stdout.isatty() else None
        read, failed, device_ms = 0, 0, 0.0
        for outcome in tqdm(outcomes, desc="classifying", unit="picture", disable=hidden):
            read += outcome.error is None
            failed += outcome.error is not None
            device_ms += outcome.device_ms
            _print_json(outcome) if as_json else _print(outcome)
    if not as_json and read:
        click.echo(f"\n{opened}: {read:,} pictures, {device_ms / read:.1f} ms each on the device", err=True)
    if failed:
        click.echo(f"{failed:,} of {read + failed:,} pictures could not be classified", err=True)
        sys.exit(1)


def _sources(pictures: Iterable[str], download_demo: bool) -> "Iterator[Source]":
    from service.offline import demo, find

    named = find(pictures)
    if download_demo:
        return chain(named, find(demo.PHOTOGRAPHS))
    return named if pictures else demo.drawn()


def _print(outcome: "Outcome") -> None:
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


def _print_json(outcome: "Outcome") -> None:
    line: dict[str, Any] = {"picture": outcome.name}
    if outcome.error is not None:
        line["error"] = outcome.error
    else:
        line["predictions"] = [
            {"class_id": ranked.class_id, "label": ranked.label, "probability": ranked.probability}
            for ranked in outcome.ranking
        ]
        line["timing_ms"] = {"decode": round(outcome.decode_ms, 3), "device": round(outcome.device_ms, 3)}
    click.echo(json.dumps(line))
