"""Commands that measure performance: run, capacity, incident, profile, resources and grpc."""

import json
import sys
from pathlib import Path
from typing import Final

import click

from load_tests import h2load, plots, profiling, report, wrk
from load_tests.cli.options import (
    host_option,
    image_option,
    images_option,
    model_option,
    output_option,
    service_or_host,
    service_under_test,
    weights_option,
    workers_option,
)
from load_tests.incident import draw_dashboards, schedule_slowdown, slow_server_command
from load_tests.resource_usage import measure_resource_usage
from load_tests.scaling import service_without_network
from load_tests.scenario_runner import ScenarioRunner
from load_tests.scenarios import SCENARIOS, constant_rate
from load_tests.service import describe_service, run_service, serve_command
from monitoring.local import free_port, run_prometheus
from resnet_service.machine import hardware_info

_CAPACITY_SHARES: Final = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5)
_INCIDENT_LOAD: Final = 0.5


@click.command()
@click.argument("scenarios", nargs=-1, type=click.Choice(list(SCENARIOS)))
@model_option
@weights_option
@host_option
@images_option
@output_option
@click.option("--seconds", type=float, help="Duration of each scenario instead of its default.")
@click.option(
    "--p99-ms", default=500.0, show_default=True, help="Target for the latency of successful requests."
)
def run(
    scenarios: tuple[str, ...],
    model: str,
    weights: str | None,
    host: str | None,
    images: Path | None,
    output: Path,
    seconds: float | None,
    p99_ms: float,
) -> None:
    """Run SCENARIOS (default: all) and check targets.

    The targets are: no request fails, none is rejected, and p99 is within --p99-ms. In scenarios that exceed
    the capacity, rejections with 429 are allowed and the processing time of a full queue is added to p99's
    target. The exit status is 1 if a target is missed.
    """
    logs, missed = {}, []
    with service_or_host(host, output, model, weights) as url:
        runner = ScenarioRunner(url, images, *([] if seconds is None else [seconds]))
        service = describe_service(url)
        click.echo(f"{url}: {service}: capacity {runner.capacity_rps:.0f} requests/s")
        for name in scenarios or SCENARIOS:
            scenario = SCENARIOS[name]
            duration_s = seconds or scenario.seconds
            click.echo(f"{name}: {scenario.description}, {duration_s:g} s")
            log = logs[name] = runner.run(scenario, duration_s)
            report.write_csv(log, output / f"{name}.csv")
            title = f"{name}: {scenario.description}\n{service}"
            plots.draw_timeline(title, log, runner.capacity_rps, output / f"{name}.png")
            target_ms = p99_ms + runner.full_queue_ms * scenario.exceeds_capacity
            missed += report.missed_targets(name, log, target_ms, scenario.exceeds_capacity)
    table = report.scenario_table(logs)
    (output / "report.md").write_text(table + "\n", encoding="utf-8")
    click.echo(f"\n{table}\n")
    for line in missed:
        click.echo(f"missed target: {line}", err=True)
    click.echo(f"reports: {output}/")
    sys.exit(1 if missed else 0)


@click.command()
@model_option
@weights_option
@host_option
@images_option
@output_option
@click.option("--seconds", default=15.0, show_default=True, help="Duration of each step.")
def capacity(
    model: str,
    weights: str | None,
    host: str | None,
    images: Path | None,
    output: Path,
    seconds: float,
) -> None:
    """Draw latency over the rate, from 10 % to 150 % of the capacity."""
    logs = {}
    with service_or_host(host, output, model, weights) as url:
        runner = ScenarioRunner(url, images, seconds)
        service = describe_service(url)
        click.echo(f"{url}: {service}: capacity {runner.capacity_rps:.0f} requests/s")
        for share in _CAPACITY_SHARES:
            name = f"{share:.0%}"
            logs[name] = runner.run(constant_rate(share), seconds)
            click.echo("  ".join(report.scenario_row(name, logs[name])))
    points = [plots.CapacityPoint.from_log(log) for log in logs.values()]
    plots.draw_capacity(points, f"{service}\nopen loop, {seconds:g} s per rate", output / "capacity.png")
    table = report.scenario_table(logs)
    (output / "capacity.md").write_text(table + "\n", encoding="utf-8")
    click.echo(f"\n{table}\n\nreports: {output}/")


@click.command()
@model_option
@images_option
@output_option
@click.option(
    "--factor", default=4.0, show_default=True, help="Factor by which batches take longer while slow."
)
@click.option("--before", default=60.0, show_default=True, help="Seconds before the model becomes slow.")
@click.option("--during", default=90.0, show_default=True, help="Seconds for which it is slow.")
@click.option("--after", default=60.0, show_default=True, help="Seconds after that.")
def incident(
    model: str, images: Path | None, output: Path, factor: float, before: float, during: float, after: float
) -> None:
    """Slow the model down and draw the dashboards.

    The load is half of the capacity; Prometheus scrapes the service.

    Needs Prometheus (Debian's package prometheus).
    """
    output.mkdir(parents=True, exist_ok=True)
    seconds = before + during + after
    with run_service(slow_server_command(model, factor), output / "service.log") as (url, process):
        # Before Prometheus starts: otherwise its first minute would show the measurement of the capacity.
        runner = ScenarioRunner(url, images, seconds)
        with run_prometheus(url.removeprefix("http://"), log=output / "prometheus.log") as prometheus:
            click.echo(f"half of {runner.capacity_rps:.0f} requests/s for {seconds:g} s")
            slowdown = schedule_slowdown(process, before, during, after)
            log = runner.run(constant_rate(_INCIDENT_LOAD), seconds)
            for path in draw_dashboards(prometheus, describe_service(url), slowdown, output):
                click.echo(f"plot: {path}")
    click.echo(f"\n{report.scenario_table({'incident': log})}")


@click.command()
@model_option
@weights_option
@image_option
@output_option
@click.option(
    "--connections", default=16, show_default=True, help="Connections over which wrk sends the image."
)
@click.option("--seconds", default=10, show_default=True, help="Duration of the recording.")
def profile(
    model: str, weights: str | None, image: Path, output: Path, connections: int, seconds: int
) -> None:
    """Show the CPU time of each stage of a request.

    Needs wrk (Debian's package wrk), and root on macOS.
    """
    wrk.require_wrk()
    with service_under_test(output, model, weights) as (url, pid):
        rate_rps, stages_ms = profiling.profile(f"{url}/predict", pid, image, connections, seconds)
    total_ms = sum(stages_ms.values())
    click.echo(f"{rate_rps:.0f} requests/s, {total_ms:.2f} ms of CPU time per request\n")
    click.echo("| stage | CPU ms per request | share |\n|---|---|---|")
    for stage, ms in sorted(stages_ms.items(), key=lambda item: -item[1]):
        click.echo(f"| {stage} | {ms:.2f} | {ms / total_ms:.0%} |")


@click.command()
@model_option
@weights_option
@image_option
@output_option
@click.option(
    "--requests", default=20_000, show_default=True, help="Requests between the two readings of memory."
)
@click.option("--idle", "idle_s", default=30.0, show_default=True, help="Seconds without requests.")
def resources(
    model: str, weights: str | None, image: Path, output: Path, requests: int, idle_s: float
) -> None:
    """Measure startup, idle CPU time and memory.

    Needs wrk (Debian's package wrk).
    """
    wrk.require_wrk()
    output.mkdir(parents=True, exist_ok=True)
    command = serve_command(model, weights)
    usage = measure_resource_usage(command, image, output / "service.log", requests, idle_s)
    click.echo("| measurement | value |\n|---|---|")
    for name, value in usage.rows():
        click.echo(f"| {name} | {value} |")


@click.command()
@model_option
@weights_option
@workers_option
@image_option
@output_option
@click.option("--no-network", is_flag=True, help="Compute nothing: measure the protocols and decoding alone.")
@click.option("--clients", type=click.IntRange(1), default=64, show_default=True, help="Concurrent requests.")
@click.option("--seconds", type=float, default=10.0, show_default=True, help="Duration of a measurement.")
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Measurements of each request, alternately; the table has their medians.",
)
@click.option(
    "--min-ratio", default=0.9, show_default=True, help="Target for the images/s of gRPC relative to REST."
)
def grpc(
    model: str,
    weights: str | None,
    workers: int,
    image: Path,
    output: Path,
    no_network: bool,
    clients: int,
    seconds: float,
    rounds: int,
    min_ratio: float,
) -> None:
    """Compare gRPC with REST: images/s and CPU time.

    Sends the same image to one service over /predict and /v2 with binary bodies, and over gRPC. Needs h2load
    (Debian's package nghttp2-client). The exit status is 1 if gRPC misses its target.
    """
    from load_tests import protocols  # needs the extra grpc

    h2load.require_h2load()
    output.mkdir(parents=True, exist_ok=True)
    port = str(free_port())
    settings = {"RESNET_SERVICE_GRPC_PORT": port, "RESNET_SERVICE_WORKERS": str(workers)}
    flags = ("--grpc-port", port, "--workers", str(workers))
    with (
        service_without_network(output, settings)
        if no_network
        else service_under_test(output, model, weights, *flags)
    ) as (url, pid):
        subject = protocols.Subject(url, f"127.0.0.1:{port}", pid)
        service = f"{describe_service(url)}{', no network' * no_network}, {workers} workers"
        click.echo(f"{service}: {image.name}, {image.stat().st_size / 1e3:.0f} KB, {clients} clients")
        requests = list(protocols.requests(subject, image.read_bytes()))
        results: dict[str, list[protocols.Run]] = {request.name: [] for request in requests}
        for request in requests * rounds:
            run = protocols.measure(subject, request, clients, seconds, output)
            results[request.name].append(run)
            click.echo(f"{request.name}: {run.images_per_s:.1f} images/s, {run.server_ms:.2f} ms of CPU")
    report_json = {
        "service": service,
        "hardware": hardware_info().__dict__,
        "image": image.name,
        "clients": clients,
        "seconds": seconds,
        "requests": protocols.to_json(results),
    }
    (output / "grpc.json").write_text(json.dumps(report_json, indent=2), encoding="utf-8")
    text = protocols.table(results)
    (output / "grpc.md").write_text(text + "\n", encoding="utf-8")
    click.echo(f"\n{text}\n")
    missed = protocols.missed_targets(results, min_ratio)
    for line in missed:
        click.echo(f"missed target: {line}", err=True)
    sys.exit(1 if missed else 0)
