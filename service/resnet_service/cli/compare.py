"""`resnet-service compare`: compare models on the same images."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from resnet_service.cli.common import (
    DEFAULT_MODEL,
    MODEL_VARIABLE,
    CommaSeparated,
    batch_size_option,
    echo_error,
    execution_options,
    exit_on_service_error,
    json_option,
    load_model_to_time,
    report_skipped,
    resolve_auto,
    workers_option,
)
from resnet_service.cli.outputs import exit_on_write_error, output_option
from resnet_service.cli.tables import print_table

if TYPE_CHECKING:
    from resnet_service.benchmark.comparison import ModelComparison
    from resnet_service.devices import Precision
    from resnet_service.inference import ClassificationResult
    from resnet_service.runtimes.selection import RuntimeName


@click.command(short_help="Compare models on the same images.")
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option(
    "--model",
    "models",
    type=CommaSeparated(),
    default=DEFAULT_MODEL,
    envvar=MODEL_VARIABLE,
    show_envvar=True,
    help="Torchvision classifiers, efficientnet_lite0, cifar10 or checkpoint files, separated by commas.",
)
@execution_options
@batch_size_option(32)
@workers_option
@output_option("Write a PNG that plots accuracy over latency.", "--plot", required=False)
@json_option("Print one JSON object per model and line.")
def compare(
    inputs: tuple[str, ...],
    models: tuple[str, ...],
    device: str,
    precision: "Precision | Literal['auto']",
    runtime: "RuntimeName",
    batch_size: int,
    workers: int | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Compare models on the same images: latency, images/s, size, agreement and accuracy.

    INPUT is a file, a directory (searched recursively), a glob pattern or a URL. Agreement is the share of
    images with the same best class as the first model. Accuracy covers the images in directories
    that are named after classes of the model or ImageNet's WordNet ids.

    \b
    Examples:
      resnet-service compare photos --model resnet18,resnet50 --plot models.png
      resnet-service compare cifar10/test --model cifar10,mine.safetensors
    """
    from tqdm import tqdm

    from resnet_service.benchmark.comparison import check_models
    from resnet_service.benchmark.comparison import compare as compare_models
    from resnet_service.benchmark.results import Variant
    from resnet_service.devices import choose_device
    from resnet_service.inference import discover_inputs
    from resnet_service.machine import available_cpus
    from resnet_service.runtimes.selection import check_options
    from resnet_service.training import require_plots

    unreadable: dict[str, str] = {}

    def on_progress(
        model: str, results: "Iterable[ClassificationResult]"
    ) -> "Iterable[ClassificationResult]":
        for result in tqdm(results, desc=model, unit="image", total=len(images)):
            if result.error is not None:
                unreadable[result.name] = result.error
            yield result

    if "-" in inputs:
        raise click.UsageError("compare reads INPUT once per model, so it cannot be standard input")
    rows = []
    with exit_on_service_error():
        if plot is not None:
            require_plots()
        target = choose_device(device)
        check_options(target, runtime, precision)  # before weights are downloaded
        variant = Variant(str(target), runtime, precision)
        loaded = {source.name: load_model_to_time(source) for source in map(resolve_auto, models)}
        check_models(loaded, variant)
        images = list(discover_inputs(inputs, echo_error))
        try:
            for row in compare_models(
                loaded,
                images,
                variant,
                batch_size=batch_size,
                workers=workers or available_cpus(),
                on_progress=on_progress,
                on_message=lambda message: tqdm.write(message, sys.stderr),
            ):
                rows.append(row)
                if as_json:
                    click.echo(json.dumps(asdict(row)))
        finally:  # show the finished models even if a later one fails
            if rows and not as_json:
                _print_rows(rows)
    report_skipped(unreadable)
    if plot is not None:
        from resnet_service.benchmark import plots

        with exit_on_write_error(plot):
            plots.accuracy_over_latency(rows, plot)
    sys.exit(1 if unreadable else 0)


def _print_rows(rows: "list[ModelComparison]") -> None:
    print_table(
        ("model", "ms/image", "images/s", "params M", "file MB", "agreement", "accuracy"),
        [
            (
                f"{row.model} ({row.variant})",
                f"{row.latency_ms:.1f}",
                f"{row.images_per_second:,.1f}",
                "-" if row.parameters is None else f"{row.parameters / 1e6:.2f}",
                "-" if row.file_bytes is None else f"{row.file_bytes / 1e6:.1f}",
                f"{row.agreement:.1%}",
                "unknown" if row.accuracy is None else f"{row.accuracy:.1%} of {row.labeled:,}",
            )
            for row in rows
        ],
    )
