"""Commands about whole hosts: scaling and gpu-check."""

import sys
from pathlib import Path

import click

from load_tests import scaling
from load_tests.cli.options import output_option
from load_tests.gpu_check import GPUCheck, Row, table
from load_tests.service import write_random_weights
from load_tests.wrk import require_wrk
from resnet_service.machine import hardware_info


@click.command("scaling")
@output_option
@click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True, help="HTTP workers to measure."
)
@click.option("--seconds", default=10, show_default=True, help="Duration of each run.")
@click.option("--rounds", default=3, show_default=True, help="Runs of each kind; the fastest counts.")
def measure_scaling(output: Path, workers: int, seconds: int, rounds: int) -> None:
    """Measure the CPU time of workers and main process, and compute the capacity of hosts.

    Runs the service without a network, with one process and with --workers, alternately. Needs wrk.
    """
    require_wrk()
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    for size in scaling.SIZES:
        runs: dict[int, list[scaling.CPUTimes]] = {0: [], workers: []}
        for _ in range(rounds):
            for count, results in runs.items():
                results.append(scaling.measure(size, count, output, seconds, whole_batches=False))
                click.echo(scaling.times_table(results[-1:]).splitlines()[-1])
        rows += [max(results, key=lambda result: result.rate_rps) for results in runs.values()]
    whole = scaling.measure(scaling.SIZES[0], workers, output, seconds, whole_batches=True)
    network_us = scaling.measure_network_us(write_random_weights(output))
    photo = rows[-1]
    capacities = [
        (
            scaling.gpu_capacity(cores, photo, whole.main_us),
            scaling.cpu_capacity(cores, photo, whole.main_us, network_us),
        )
        for cores in scaling.CORES
    ]
    text = (
        f"{scaling.times_table([*rows, whole])}\n\n"
        f"ResNet-50 on this CPU: {network_us / 1e3:.1f} ms of CPU per image.\n\n"
        f"{scaling.capacity_table(capacities)}\n"
    )
    (output / "scaling.md").write_text(text, encoding="utf-8")
    click.echo(f"\n{text}\nreport: {output / 'scaling.md'}")


def _numbers(_: click.Context, __: click.Parameter, value: str) -> list[int]:
    try:
        return [int(number) for number in value.split(",")]
    except ValueError as error:
        raise click.BadParameter("expected numbers, separated by commas") from error


@click.command("gpu-check")
@output_option
@click.option("--device", default="cuda", show_default=True, help="Device to check; cpu proves the command.")
@click.option("--model", default="resnet50", show_default=True, help="Model whose speed is measured.")
@click.option(
    "--images",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder of JPEG files that requests carry.",
)
@click.option("--data", help="What to train on: cifar10, or a folder with train/ and test/; none by default.")
@click.option(
    "--workers",
    default="0,1,2,4,8,12",
    show_default=True,
    callback=_numbers,
    help="Numbers of HTTP workers; 0 is one process.",
)
@click.option(
    "--batch-sizes", default="1,8,32,64,128,256", show_default=True, callback=_numbers, help="Batch sizes."
)
@click.option("--seconds", default=6, show_default=True, help="Duration of each load.")
@click.option(
    "--epochs", type=click.IntRange(1), help="Epochs of the training; by default those of the recipe."
)
@click.option(
    "--accuracy", default=0.94, show_default=True, help="Test accuracy that the training has to reach."
)
def gpu_check(
    output: Path,
    device: str,
    model: str,
    images: Path,
    data: str | None,
    workers: list[int],
    batch_sizes: list[int],
    seconds: int,
    epochs: int | None,
    accuracy: float,
) -> None:
    """Check and measure everything that needs a GPU, and write a table for the documentation.

    Correctness of each precision, running out of memory, images/s, requests/s with HTTP workers, batch
    inference, training. Needs wrk, and no network. The exit status is 1 if a check fails.
    """
    check = GPUCheck(device, model, output, images, data, workers, batch_sizes, seconds, epochs, accuracy)

    def report(row: Row) -> None:
        click.echo(f"{row.name}: {row.value}{' (failed)' if row.passed is False else ''}")

    rows = check.run(report)
    info = hardware_info()
    versions = f"torch {info.torch}, Python {info.python}"
    host = f"{info.gpu or 'no GPU'}, {info.processor}, {info.cores} cores, {versions}"
    (output / "gpu-check.md").write_text(table(rows, host), encoding="utf-8")
    click.echo(f"report: {output / 'gpu-check.md'}")
    sys.exit(any(row.passed is False for row in rows))
