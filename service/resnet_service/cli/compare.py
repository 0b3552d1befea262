"""`resnet-service compare`: models side by side."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_service.cli.errors import exit_on_service_error
from resnet_service.cli.options import execution_options

if TYPE_CHECKING:
    from resnet_service.benchmark.comparison import ModelComparison
    from resnet_service.inference import ClassificationResult


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--images",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="Folder of images; names of folders or files may tell their classes.",
)
@execution_options
@click.option("--batch-size", type=click.IntRange(1), default=32, help="Images in a batch, at most.")
@click.option(
    "--workers", type=click.IntRange(1), help="WorkerPool that decode.  [default: one for each core]"
)
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw accuracy over latency, a PNG."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each model, a line each.")
def compare(
    models: tuple[str, ...],
    images: Path,
    device: str,
    precision: str,
    runtime: str,
    batch_size: int,
    workers: int | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Compare MODELS on the same images: latency, images/s, size, parameters, agreement and accuracy.

    Agreement is with the first model. Accuracy is over the images whose folder or file is called as one of
    a model's classes, or by ImageNet's WordNet ids.

    \b
    Examples:
      resnet-service compare resnet18 resnet50 resnet152 --images photos --plot models.png
      resnet-service compare bundled runs/mine/model.safetensors --images cifar10/test
    """
    from tqdm import tqdm

    from resnet_service.benchmark.comparison import compare as compared
    from resnet_service.benchmark.results import Variant
    from resnet_service.devices import choose_device
    from resnet_service.inference import discover_inputs
    from resnet_service.machine import available_cpus
    from resnet_service.training import require_plots

    unreadable: dict[str, str] = {}

    def on_progress(
        model: str, outcomes: "Iterable[ClassificationResult]"
    ) -> "Iterable[ClassificationResult]":
        for outcome in tqdm(outcomes, desc=model, unit="image", total=len(sources)):
            if outcome.error is not None:
                unreadable[outcome.name] = outcome.error
            yield outcome

    if plot is not None and not plot.absolute().parent.is_dir():
        raise click.UsageError(f"there is no folder {plot.absolute().parent} to write to")
    rows = []
    with exit_on_service_error():
        if plot is not None:
            require_plots()
        sources = list(discover_inputs([str(images)]))
        try:
            for row in compared(
                models,
                sources,
                Variant(str(choose_device(device)), runtime, precision),
                batch_size=batch_size,
                workers=workers or available_cpus(),
                on_progress=on_progress,
                on_message=lambda message: tqdm.write(message, sys.stderr),
            ):
                rows.append(row)
                if as_json:
                    click.echo(json.dumps(asdict(row)))
        finally:  # what is known of the first models, even where a later one cannot be had
            if rows and not as_json:
                _print(rows)
    for name, reason in unreadable.items():
        click.echo(f"skipped {click.format_filename(name)}: {reason}", err=True)
    if plot is not None:
        from resnet_service.benchmark import plots

        try:
            plots.accuracy_over_latency(rows, plot)
        except OSError as error:
            raise click.ClickException(f"{plot} cannot be written: {error.strerror}") from error
    sys.exit(1 if unreadable else 0)


def _print(rows: "list[ModelComparison]") -> None:
    from rich.table import Table

    from resnet_service.cli.tables import show

    names = ("ms, one image", "images/s", "parameters", "on disk", "agreement", "accuracy")
    table = Table("model", "variant", *names)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        accuracy = "not known" if row.accuracy is None else f"{row.accuracy:.1%} of {row.labeled:,}"
        table.add_row(
            row.model,
            str(row.variant),
            f"{row.latency_ms:.1f}",
            f"{row.images_per_second:,.1f}",
            "" if row.parameters is None else f"{row.parameters / 1e6:.2f} M",
            "" if row.file_bytes is None else f"{row.file_bytes / 1e6:.1f} MB",
            f"{row.agreement:.1%}",
            accuracy,
        )
    show(table)
