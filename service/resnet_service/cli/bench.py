"""`resnet-service bench`: measure a model's speed; `bench report` compares several machines."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from resnet_service.cli.common import (
    DEVICE_HELP,
    PRECISION_HELP,
    PRECISIONS,
    RUNTIME_HELP,
    RUNTIMES,
    CommaSeparated,
    batch_size_option,
    exit_on_service_error,
    json_option,
    load_model_to_time,
    model_option,
    workers_option,
)
from resnet_service.cli.outputs import exit_on_write_error, output_option
from resnet_service.cli.tables import print_table

if TYPE_CHECKING:
    from resnet_service.benchmark.results import BenchmarkRun, Variant
    from resnet_service.models import Model, ModelSource

_END_TO_END_OPTIONS: Final = ("batch_size", "workers")
_MODEL_OPTIONS: Final = ("batch_sizes", "iterations")
_LIST: Final = "Separate several by commas."


@click.group(
    invoke_without_command=True,
    subcommand_metavar="[report ...]",
    short_help="Measure a model's latency and throughput on this machine.",
)
@model_option
@click.option("--device", "devices", type=CommaSeparated(), default="auto", help=f"{DEVICE_HELP} {_LIST}")
@click.option(
    "--runtime",
    "runtimes",
    type=CommaSeparated(("auto", *RUNTIMES)),
    default="auto",
    metavar=",".join(("auto", *RUNTIMES)),
    help=f"{RUNTIME_HELP} {_LIST}",
)
@click.option(
    "--precision",
    "precisions",
    type=CommaSeparated(("auto", *PRECISIONS)),
    default="auto",
    metavar=",".join(("auto", *PRECISIONS)),
    help=f"{PRECISION_HELP} {_LIST}",
)
@click.option(
    "--memory-format",
    "memory_formats",
    type=CommaSeparated(("channels_last", "contiguous")),
    default="channels_last",
    metavar="channels_last,contiguous",
    help=f"Memory format of tensors in PyTorch. {_LIST}",
)
@click.option("--compile", "with_compile", is_flag=True, help="Also measure with torch.compile.")
@click.option(
    "--batch-sizes",
    type=CommaSeparated(minimum=1),
    default="1,4,8,16,32",
    help="Batch sizes to measure the model with.",
)
@click.option("--iterations", type=click.IntRange(1), default=20, help="Number of batches of each size.")
@click.option(
    "--end-to-end",
    type=click.IntRange(1),
    metavar="IMAGES",
    help="Classify this many generated JPEGs instead, from encoded bytes to classes.",
)
@batch_size_option(32)
@workers_option
@output_option("Also write the results to this JSON file.", required=False)
@json_option("Print the results as one JSON object.")
@click.pass_context
def bench(context: click.Context, /, **options: Any) -> None:
    """Measure a model in each combination of devices, runtimes, precisions and memory formats.

    Measures latency and images/s of the model alone for several batch sizes, after a warm-up and one batch at
    a time. With --end-to-end, generated JPEGs are decoded, resized and classified concurrently; --batch-size
    and --workers apply only then.

    \b
    Examples:
      resnet-service bench
      resnet-service bench --device cpu,cuda --batch-sizes 1,8,32 -o here.json
      resnet-service bench --precision fp32,bf16,int8
      resnet-service bench --runtime torch,openvino --model resnet50
      resnet-service bench --end-to-end 1000 --batch-size 64
      resnet-service bench report here.json there.json --output report
    """
    if context.invoked_subcommand is not None:
        return
    unused = _MODEL_OPTIONS if options["end_to_end"] else _END_TO_END_OPTIONS
    for name in unused:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            condition = "with" if options["end_to_end"] else "without"
            raise click.UsageError(f"--{name.replace('_', '-')} has no effect {condition} --end-to-end")
    _run_benchmark(**options)


def _run_benchmark(
    *,
    model: "ModelSource",
    devices: tuple[str, ...],
    runtimes: tuple[str, ...],
    precisions: tuple[str, ...],
    memory_formats: tuple[Any, ...],
    with_compile: bool,
    output: Path | None,
    as_json: bool,
    **measurement: Any,
) -> None:
    from resnet_service.benchmark import model_benchmark, results
    from resnet_service.devices import choose_devices
    from resnet_service.errors import DeviceError, ServiceError
    from resnet_service.runtimes.quantization import require_nncf
    from resnet_service.runtimes.selection import require_onnxruntime, require_openvino

    with exit_on_service_error():
        targets = dict.fromkeys(str(device) for name in devices for device in choose_devices(name))
        if "openvino" in runtimes:
            require_openvino()
        if "onnxruntime" in runtimes:
            require_onnxruntime()
        loaded = load_model_to_time(model)
        if "int8" in precisions and not loaded.is_quantized:
            require_nncf()
        compiled = (False, True) if with_compile else (False,)
        rows: list[Any] = []
        skipped = 0
        for variant in model_benchmark.variants(
            tuple(targets), runtimes, precisions, memory_formats, compiled
        ):
            try:
                rows += _measure(loaded, variant, **measurement)
            except DeviceError:
                raise
            except ServiceError as error:
                skipped += 1
                click.echo(f"{variant}: {error}", err=True)
        if not rows:
            raise click.ClickException("no combination could be measured")
    is_end_to_end = measurement["end_to_end"] is not None
    run = results.current_run(end_to_end=rows) if is_end_to_end else results.current_run(model=rows)
    click.echo(results.to_json(run)) if as_json else _print_run(run)
    if output is not None:
        with exit_on_write_error(output):
            results.save_results(run, output)
    sys.exit(1 if skipped else 0)


def _measure(
    model: "Model",
    requested: "Variant",
    *,
    batch_sizes: tuple[int, ...],
    iterations: int,
    end_to_end: int | None,
    batch_size: int,
    workers: int | None,
) -> list[Any]:
    """Measure one variant with a progress bar, and return its rows."""
    from tqdm import tqdm

    from resnet_service.benchmark import model_benchmark
    from resnet_service.benchmark.end_to_end import benchmark_end_to_end
    from resnet_service.machine import available_cpus

    def on_message(message: str) -> None:
        tqdm.write(message, sys.stderr)

    runtime, variant = model_benchmark.create_variant_runtime(model, requested)
    name = f"{model.name}, {variant}"
    if end_to_end is None:
        rows = model_benchmark.benchmark_model(model, runtime, variant, batch_sizes, iterations, on_message)
        return list(tqdm(rows, desc=name, unit="batch size", total=len(batch_sizes)))
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


def _print_run(run: "BenchmarkRun") -> None:
    processor = run.hardware.processor
    if run.model:
        first = {row.batch_size: row.images_per_second for row in reversed(run.model)}
        print_table(
            ("variant", "batch", "p50 ms", "p95 ms", "p99 ms", "images/s", "speed-up"),
            [
                (
                    str(row.variant),
                    str(row.batch_size),
                    *(f"{value:,.1f}" for value in (row.p50_ms, row.p95_ms, row.p99_ms)),
                    f"{row.images_per_second:,.1f}",
                    f"{row.images_per_second / first[row.batch_size]:.2f}",
                )
                for row in run.model
            ],
            f"{run.model[0].model}, {processor}",
        )
        return
    print_table(
        ("variant", "batch", "images", "seconds", "images/s", "workers", "decoded/s", "by one"),
        [
            (
                str(full.variant),
                str(full.batch_size),
                f"{full.images:,}",
                f"{full.seconds:.1f}",
                f"{full.images_per_second:,.1f}",
                str(full.workers),
                f"{full.preprocessing_per_second:,.0f}",
                f"{full.preprocessing_with_one_worker:,.0f}",
            )
            for full in run.end_to_end
        ],
        f"{run.end_to_end[0].model}, {processor}",
    )
    click.echo("\ndecoded/s: preprocessing without the model, by all workers and by one")


@bench.command(short_help="Compare results of several machines.")
@click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@output_option("Directory to write report.md and the plots to.", directory=True)
@json_option("Print the results and the paths of the report as one JSON object.")
def report(files: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Compare the results of several machines in a Markdown table and plots.

    FILE is written by `resnet-service bench --output FILE`.

    \b
    Example:
      resnet-service bench report laptop.json server.json --output report
    """
    from resnet_service.benchmark import report as reports
    from resnet_service.benchmark import results

    with exit_on_service_error():
        runs = [results.load_results(path) for path in files]
        with exit_on_write_error(output):
            paths = reports.write_report(runs, output)
    if as_json:
        content = {"runs": [json.loads(results.to_json(run)) for run in runs], "files": list(map(str, paths))}
        click.echo(json.dumps(content))
        return
    click.echo(reports.markdown_table(runs))
    for path in paths:
        click.echo(click.format_filename(path), err=True)
