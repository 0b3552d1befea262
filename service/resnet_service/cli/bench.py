"""`resnet-service bench`: how fast models are here, and `bench report`: here and elsewhere."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_service.cli.errors import exit_on_service_error
from resnet_service.cli.options import PRECISIONS, RUNTIMES, model_option

if TYPE_CHECKING:
    from resnet_service.benchmark.results import BenchmarkRun
    from resnet_service.models import Model


class _Several(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions only
    """A list with commas between: of some choices, of any words, or of numbers from 1."""

    name = "list"

    def __init__(self, choices: Iterable[str] | None = None, *, numbers: bool = False) -> None:
        self._choices = None if choices is None else tuple(choices)
        self._numbers = numbers

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """Split the list; a value that it cannot have is a usage error."""
        if isinstance(value, tuple):
            return value
        words = tuple(dict.fromkeys(word.strip() for word in str(value).split(",")))
        for word in words:
            if self._choices is not None and word not in self._choices:
                self.fail(f"{word!r} is none of {', '.join(self._choices)}", param, ctx)
            if self._numbers and not (word.isdecimal() and int(word) > 0):
                self.fail(f"{word!r} is no number from 1 on", param, ctx)
        return tuple(int(word) for word in words) if self._numbers else words


_END_TO_END = ("batch_size", "workers")
_MODEL_ALONE = ("batch_sizes", "iterations")

_out = click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Keep the results in this file, as JSON."
)


@click.group(invoke_without_command=True)
@model_option
@click.option("--devices", type=_Several(), default="auto", help="One or more: cpu, cuda, cuda:N, mps.")
@click.option(
    "--runtime", "runtimes", type=_Several(("auto", *RUNTIMES)), default="auto", help="One or more."
)
@click.option(
    "--precision", "precisions", type=_Several(("auto", *PRECISIONS)), default="auto", help="One or more."
)
@click.option(
    "--memory-format",
    "memory_formats",
    type=_Several(("channels_last", "contiguous")),
    default="channels_last",
    help="One or both; PyTorch's.",
)
@click.option("--compile", "also_compiled", is_flag=True, help="Measure torch.compile as well.")
@click.option(
    "--batch-sizes", type=_Several(numbers=True), default="1,4,8,16,32", help="For the model alone."
)
@click.option("--iterations", type=click.IntRange(1), default=20, help="Batches of each size.")
@click.option(
    "--end-to-end",
    type=click.IntRange(1),
    metavar="IMAGES",
    help="Instead, take so many JPEGs from their bytes to an answer.",
)
@click.option("--batch-size", type=click.IntRange(1), default=32, help="For --end-to-end.")
@click.option(
    "--workers", type=click.IntRange(1), help="WorkerPool that decode.  [default: one for each core]"
)
@_out
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@click.pass_context
def bench(context: click.Context, /, **given: Any) -> None:
    """Measure how fast a model is, in each combination of the devices, runtimes and precisions given.

    The model alone: latency and images/s over batch sizes, after a warm-up, each batch waited for. With
    --end-to-end: generated JPEGs through decoding, resizing and the model at the same time.

    \b
    Examples:
      resnet-service bench --model bundled
      resnet-service bench --devices cpu,cuda --batch-sizes 1,8,32 --out here.json
      resnet-service bench --precision fp32,bf16,int8
      resnet-service bench --runtime torch --memory-format channels_last,contiguous --compile
      resnet-service bench --end-to-end 1000 --batch-size 64
      resnet-service bench report here.json there.json --out report
    """
    if context.invoked_subcommand is not None:
        return
    idle = _MODEL_ALONE if given["end_to_end"] else _END_TO_END
    for name in idle:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            without = "with" if given["end_to_end"] else "without"
            raise click.UsageError(f"--{name.replace('_', '-')} means nothing {without} --end-to-end")
    _bench(**given)


def _bench(
    *,
    model: str,
    weights: str | None,
    devices: tuple[str, ...],
    runtimes: tuple[str, ...],
    precisions: tuple[str, ...],
    memory_formats: tuple[Any, ...],
    also_compiled: bool,
    out: Path | None,
    as_json: bool,
    **measurement: Any,
) -> None:
    from resnet_service.benchmark import model_benchmark, results
    from resnet_service.devices import choose_devices
    from resnet_service.errors import DeviceError, ServiceError
    from resnet_service.models import load_model

    if out is not None and not out.absolute().parent.is_dir():
        raise click.UsageError(f"there is no folder {out.absolute().parent} to write to")
    with exit_on_service_error():
        chosen = dict.fromkeys(str(device) for name in devices for device in choose_devices(name))
        loaded = load_model(model, weights)
        compiled = (False, True) if also_compiled else (False,)
        rows: list[Any] = []
        skipped = 0
        for wanted in model_benchmark.variants(tuple(chosen), runtimes, precisions, memory_formats, compiled):
            try:
                rows += _measured(loaded, wanted, **measurement)
            except DeviceError:
                raise
            except ServiceError as error:
                skipped += 1
                click.echo(f"{wanted}: {error}", err=True)
        if not rows:
            raise click.ClickException("nothing could be measured")
    end_to_end = measurement["end_to_end"] is not None
    run = results.current_run(end_to_end=rows) if end_to_end else results.current_run(model=rows)
    if out is not None:
        try:
            results.save_results(run, out)
        except OSError as error:
            raise click.ClickException(f"{out} cannot be written: {error.strerror}") from error
    _print(run, as_json)
    sys.exit(1 if skipped else 0)


def _measured(
    model: "Model",
    wanted: Any,
    *,
    batch_sizes: tuple[int, ...],
    iterations: int,
    end_to_end: int | None,
    batch_size: int,
    workers: int | None,
) -> list[Any]:
    """Measure one variant, with a progress bar."""
    from tqdm import tqdm

    from resnet_service.benchmark import model_benchmark
    from resnet_service.benchmark.end_to_end import benchmark_end_to_end
    from resnet_service.machine import available_cpus

    def on_message(message: str) -> None:
        tqdm.write(message, sys.stderr)

    runtime, variant = model_benchmark.create_variant_runtime(model, wanted)
    name = f"{model.name}, {variant}"
    if end_to_end is None:
        measured = model_benchmark.benchmark_model(
            model, runtime, variant, batch_sizes, iterations, on_message
        )
        return list(tqdm(measured, desc=name, unit="batch size", total=len(batch_sizes)))
    row = benchmark_end_to_end(
        model,
        runtime,
        variant,
        images=end_to_end,
        batch_size=batch_size,
        workers=workers or available_cpus(),
        on_progress=lambda outcomes: tqdm(outcomes, desc=name, unit="image", total=end_to_end),
    )
    return [row]


def _print(run: "BenchmarkRun", as_json: bool) -> None:
    from resnet_service.benchmark import results

    if as_json:
        click.echo(results.to_json(run))
        return
    from rich.table import Table

    from resnet_service.cli.tables import show

    models = [*(row.model for row in run.model), *(row.model for row in run.end_to_end)]
    title = f"{models[0]}, {run.hardware.processor}"
    if run.model:
        names = ("variant", "batch", "p50 ms", "p95 ms", "p99 ms", "images/s", "speed-up")
        table = Table(*names, title=title)
        first = {row.batch_size: row.images_per_second for row in reversed(run.model)}
        for row in run.model:
            speed_up = row.images_per_second / first[row.batch_size]
            figures = (row.p50_ms, row.p95_ms, row.p99_ms, row.images_per_second)
            shown = (f"{figure:,.1f}" for figure in figures)
            table.add_row(str(row.variant), str(row.batch_size), *shown, f"{speed_up:.2f}")
    else:
        names = ("variant", "batch", "images", "seconds", "images/s", "preprocessing alone", "workers")
        table = Table(*names, title=title)
        for full in run.end_to_end:
            gain = full.preprocessing_per_second / full.preprocessing_with_one_worker
            table.add_row(
                str(full.variant),
                str(full.batch_size),
                f"{full.images:,}",
                f"{full.seconds:.1f}",
                f"{full.images_per_second:,.1f}",
                f"{full.preprocessing_per_second:,.0f}/s, {gain:.2f} times one worker's",
                str(full.workers),
            )
    for column in table.columns[1:]:
        column.justify = "right"
    show(table)


@bench.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write."
)
def report(files: tuple[Path, ...], out: Path) -> None:
    """Lay results side by side, from this machine and others: a Markdown table and plots.

    \b
    Example:
      resnet-service bench report laptop.json server.json --out report
    """
    from resnet_service.benchmark import report as reports
    from resnet_service.benchmark import results

    with exit_on_service_error():
        runs = [results.load_results(path) for path in files]
        try:
            written = reports.write_report(runs, out)
        except OSError as error:
            raise click.ClickException(f"{out} cannot be written: {error.strerror}") from error
    click.echo(reports.markdown_table(runs))
    for path in written:
        click.echo(click.format_filename(path), err=True)
