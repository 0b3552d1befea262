"""Command line of the load tests."""

import sys

import click

from load_tests.cli import hosts, performance, reliability
from load_tests.service import LoadTestError
from monitoring.local import PrometheusError

__all__ = ["commands", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """Test the service under load.

    Each command starts a service and stops it at the end; run and capacity can also test a running one
    (--host). Reports are written to a folder (--output).

    Performance: run, capacity, incident, profile, resources, grpc.

    Hosts: scaling, gpu-check.

    Reliability: overload, retry-storm, priorities, models, slow-clients, worst-case, fuzz, soak,
    interrupted-starts.

    Exit status: 0 success, 1 a missed target or a failed check, 2 usage error.
    """


for _command in (
    performance.run,
    performance.capacity,
    performance.incident,
    performance.profile,
    performance.resources,
    performance.grpc,
    hosts.measure_scaling,
    hosts.gpu_check,
    reliability.overload,
    reliability.retry_storm,
    reliability.priorities,
    reliability.models,
    reliability.slow_clients,
    reliability.worst_case,
    reliability.fuzz,
    reliability.soak,
    reliability.interrupted_starts,
):
    commands.add_command(_command)


def main() -> None:
    """Run a command; an error ends the process with status 1 and a message."""
    try:
        commands(prog_name="python -m load_tests")
    except (LoadTestError, PrometheusError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
