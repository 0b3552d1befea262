"""Commands that check guarantees, from overload to interrupted starts."""

import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from load_tests.cli.options import (
    model_option,
    output_option,
    service_under_test,
    weights_option,
    workers_option,
)
from load_tests.images import encode_jpeg
from load_tests.interrupted_starts import run_interrupted_starts
from load_tests.models import run_models, write_repository
from load_tests.overload import run_overload
from load_tests.plots import draw_overload, draw_soak
from load_tests.priorities import run_priorities
from load_tests.report import Check, checks_table
from load_tests.retry_storm import measure_peak, run_retry_storm
from load_tests.service import describe_service, serve_command, write_random_weights
from load_tests.slow_clients import run_slow_clients
from load_tests.soak import run_soak
from load_tests.worst_case import checks as worst_case_checks
from load_tests.worst_case import measurements as worst_case_measurements
from load_tests.worst_case import run_worst_cases
from load_tests.wrk import require_wrk
from monitoring.local import free_port

if TYPE_CHECKING:
    from load_tests.fuzz.api import ApiFuzzResult
    from load_tests.fuzz.fuzzers import DecoderFuzzResult, ParserFuzzResult

_MODEL: Final = "cifar10"
_STORM_SIZES: Final = ((840, 630), (1800, 1350))
"""In pixels: 146 KB and 660 KB."""
_MIN_INPUTS: Final = 100_000
_MAX_GROWTH_MB: Final = 50
_MAX_PROBE_MS: Final = 100


@click.command()
@model_option
@weights_option
@output_option
@click.option(
    "--factor", default=10.0, show_default=True, help="Rate of requests as a multiple of the capacity."
)
@click.option("--seconds", default=120.0, show_default=True, help="Duration of the overload.")
def overload(model: str, weights: str | None, output: Path, factor: float, seconds: float) -> None:
    """Send many times the capacity of the service.

    Checks goodput, rejections, memory and recovery. A large network on a CPU leaves CPU time for the load
    generator.
    """
    with service_under_test(output, model, weights, log="overload.log") as (url, pid):
        service = describe_service(url)
        result = run_overload(url, pid, factor=factor, seconds=seconds, show_progress=True)
    title = f"{service}\n{factor:g} times its capacity for {seconds:g} s"
    draw_overload(result, title, output / "overload.png")
    _report(output, "overload", result.checks(), result.measurements())


@click.command("retry-storm")
@model_option
@weights_option
@output_option
@click.option(
    "--connections",
    multiple=True,
    default=(1000, 4000),
    show_default=True,
    help="Number of clients; may be repeated.",
)
@workers_option
@click.option("--seconds", default=30, show_default=True, help="Duration of each run.")
def retry_storm(
    model: str, weights: str | None, output: Path, connections: tuple[int, ...], workers: int, seconds: int
) -> None:
    """Let thousands of clients retry at once, with small and with large images.

    Checks goodput, the probes of both ports, and recovery.
    """
    require_wrk()
    checks: list[Check] = []
    measurements: list[tuple[str, str]] = []
    port = free_port()
    management_url = f"http://127.0.0.1:{port}"
    flags = ("--management-port", str(port), "--workers", str(workers))
    with service_under_test(output, model, weights, *flags, log="retry-storm.log") as (url, pid):
        for number, size in enumerate(_STORM_SIZES):
            image = output / f"retry-storm-{number}.jpg"
            image.write_bytes(encode_jpeg(size))
            peak_rps = measure_peak(url, management_url, image, seconds)
            measurements.append((f"{size[0]} x {size[1]}: peak", f"{peak_rps:.0f}/s"))
            for count in connections:
                result = run_retry_storm(url, management_url, pid, image, count, peak_rps, seconds)
                checks += result.checks()
                measurements += result.measurements()
    _report(output, "retry-storm", checks, measurements)


@click.command()
@model_option
@weights_option
@output_option
@workers_option
@click.option("--seconds", default=30.0, show_default=True, help="Duration of each of the four runs.")
def priorities(model: str, weights: str | None, output: Path, workers: int, seconds: float) -> None:
    """Saturate the device with bulk requests beside interactive ones.

    Checks the latency of the interactive requests, and the share that bulk requests get if both saturate the
    device.
    """
    flags = ("--workers", str(workers))
    with service_under_test(output, model, weights, *flags, log="priorities.log") as (url, _):
        result = run_priorities(url, seconds)
    _report(output, "priorities", result.checks(), result.measurements())


@click.command()
@output_option
@workers_option
@click.option("--rate", default=10.0, show_default=True, help="Requests per second to each version.")
@click.option("--seconds", default=30.0, show_default=True, help="Duration before and after the changes.")
def models(output: Path, workers: int, rate: float, seconds: float) -> None:
    """Reload, add and unload models under load.

    Two models with two versions each get requests at a constant rate. Checks that none is lost or slower
    afterwards, and that the memory of a ResNet-50 returns after its unload.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        flags = (*write_repository(Path(folder)), "--workers", str(workers))
        with service_under_test(output, "auto", None, *flags, log="models.log") as (url, pid):
            weights = write_random_weights(output)
            result = run_models(url, pid, Path(folder), weights, rate, seconds)
    _report(output, "models", result.checks(), result.measurements())


@click.command("slow-clients")
@output_option
@click.option("--idle", default=10_000, show_default=True, help="Number of connections that send nothing.")
@click.option(
    "--slow", default=2_000, show_default=True, help="Number of clients that send one byte per second."
)
@click.option("--seconds", default=20.0, show_default=True, help="Duration of each part.")
def slow_clients(output: Path, idle: int, slow: int, seconds: float) -> None:
    """Open thousands of idle and slow connections.

    Checks their memory and their effect on a normal client.
    """
    checks: list[Check] = []
    flags = ("--header-timeout-s", str(seconds * 10))  # keeps idle connections open
    with service_under_test(output, _MODEL, None, *flags, log="slow-clients.log") as (url, pid):
        checks += run_slow_clients(url, pid, "idle", idle, seconds).checks()
    with service_under_test(output, _MODEL, log="slow-clients.log") as (url, pid):
        checks += run_slow_clients(url, pid, "slow", slow, seconds).checks()
    _report(output, "slow-clients", checks)


@click.command("worst-case")
@output_option
def worst_case(output: Path) -> None:
    """Send the most expensive requests.

    They are within the limits or just above; /healthz is probed meanwhile.
    """
    with service_under_test(output, _MODEL, log="worst-case.log") as (url, _):
        results = run_worst_cases(url, show_progress=True)
    _report(output, "worst-case", worst_case_checks(results), worst_case_measurements(results))


@click.command()
@output_option
@click.option("--decode", default=300_000, show_default=True, help="Number of inputs for the decoder.")
@click.option("--parse", default=30_000, show_default=True, help="Number of bodies for the parsers.")
@click.option("--api", default=20_000, show_default=True, help="Approximate number of requests for the API.")
def fuzz(output: Path, decode: int, parse: int, api: int) -> None:
    """Fuzz the decoder, the parsers and the API."""
    # Imported here: these modules need hypothesis, schemathesis and atheris.
    from load_tests.fuzz.api import fuzz_api
    from load_tests.fuzz.fuzzers import fuzz_decoder, fuzz_parsers

    output.mkdir(parents=True, exist_ok=True)
    decoder = fuzz_decoder(decode, output)
    click.echo(f"decoder: {decoder.runs:,} inputs in {decoder.seconds:.0f} s")
    parsers = fuzz_parsers(parse)
    click.echo(f"parsers: {parsers.total:,} bodies in {parsers.seconds:.0f} s")
    with service_under_test(output, _MODEL, log="fuzz.log") as (url, pid):
        responses = fuzz_api(url, api, pid)
    for failure in [*map(str, decoder.crashes), *parsers.failures, *responses.failures]:
        click.echo(failure, err=True)
    counts = sorted(responses.statuses.items())
    statuses = ", ".join(f"{status}: {count:,}" for status, count in counts)
    _report(
        output,
        "fuzz",
        _fuzz_checks(decoder, parsers, responses),
        [("responses of the API by status", statuses)],
    )


def _fuzz_checks(
    decoder: "DecoderFuzzResult", parsers: "ParserFuzzResult", api: "ApiFuzzResult"
) -> list[Check]:
    inputs = decoder.runs + parsers.total + api.total
    failures = len(decoder.crashes) + len(parsers.failures) + len(api.failures)
    growth_mb = (decoder.growth_mb, parsers.growth_mb, api.growth_mb)
    return [
        Check(f"at least {_MIN_INPUTS:,} inputs", f"{inputs:,}", inputs >= _MIN_INPUTS),
        Check("no crash, no undeclared error, no 5xx", str(failures), not failures),
        Check(
            f"memory of decoder, parsers and service grows by less than {_MAX_GROWTH_MB} MB after warm-up",
            ", ".join(f"{growth:+.1f}" for growth in growth_mb) + " MB",
            max(growth_mb) < _MAX_GROWTH_MB,
        ),
        Check(
            f"/healthz responds within {_MAX_PROBE_MS} ms meanwhile",
            f"slowest {api.slowest_probe_ms:.0f} ms of {api.probes:,} responses",
            api.slowest_probe_ms < _MAX_PROBE_MS and not api.failed_probes,
        ),
    ]


@click.command()
@model_option
@weights_option
@output_option
@click.option("--seconds", default=1800.0, show_default=True, help="Duration of the load.")
def soak(model: str, weights: str | None, output: Path, seconds: float) -> None:
    """Send mixed load for half an hour.

    Checks that memory, threads, open files and latency do not grow.
    """
    with service_under_test(output, model, weights, log="soak.log") as (url, pid):
        service = describe_service(url)
        result = run_soak(url, pid, seconds=seconds, show_progress=True)
    draw_soak(result, f"{service}\n{seconds / 60:g} min of mixed load", output / "soak.png")
    _report(output, "soak", result.checks(), result.measurements())


@click.command("interrupted-starts")
@model_option
@weights_option
@output_option
@workers_option
@click.option("--starts", default=500, show_default=True, help="Number of starts.")
def interrupted_starts(model: str, weights: str | None, output: Path, workers: int, starts: int) -> None:
    """Send SIGTERM to services that start, at random moments.

    Checks that each ends within two seconds.
    """
    output.mkdir(parents=True, exist_ok=True)
    command = serve_command(model, weights, "--workers", str(workers))
    result = run_interrupted_starts(command, os.environ, starts, output, show_progress=True)
    measurements = [("starts, seconds until ready", f"{starts}, {result.ready_s:.1f}")]
    _report(output, "interrupted-starts", result.checks(), measurements)


def _report(
    output: Path, name: str, checks: Iterable[Check], measurements: Iterable[tuple[str, str]] = ()
) -> None:
    """Print the table, write it to NAME.md, and exit with status 1 if a check failed."""
    checks = list(checks)
    table = checks_table(checks, measurements)
    (output / f"{name}.md").write_text(table + "\n", encoding="utf-8")
    click.echo(f"\n{table}\n\nreports: {output}/")
    sys.exit(0 if all(check.passed for check in checks) else 1)
