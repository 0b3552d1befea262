"""`python -m load_tests.peers`: compare this service with other servers on the same image."""

import json
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
from tqdm import tqdm

from load_tests.cli.options import image_option
from load_tests.peers.competitors import (
    PEERS,
    THIS_SERVICE,
    Competitor,
    python_of,
    run_competitor,
    wait_until_ready,
)
from load_tests.peers.report import write_report
from load_tests.service import LoadTestError, write_random_weights
from load_tests.wrk import require_wrk, run_wrk
from resnet_service.machine import hardware_info

_SERVE: Final = ("-m", "resnet_service", "serve", "--log-format", "json", "--no-access-log")
_WARM_UP_S: Final = 3
_MANY_CONNECTIONS: Final = (64, 1000)


class Table(NamedTuple):
    """One table of the report: servers that are compared over a number of connections."""

    name: str
    competitors: list[Competitor]
    connections: int
    has_model: bool = True


def tables_of(weights: Path, int8: Path | None, connections: int) -> list[Table]:
    """Return all tables; int8 is left out if `int8` is None."""
    service = Competitor(THIS_SERVICE, (*_SERVE, "--model", "resnet50", "--weights", str(weights)))
    no_op_service = Competitor(THIS_SERVICE, ("-m", "load_tests.peers.servers.this_service"))
    tables = [
        Table("default precision", [service, *PEERS], connections),
        Table("no model", [no_op_service, *PEERS], connections, has_model=False),
    ]
    tables += [
        Table(f"no model, {count:,} connections", [no_op_service, *PEERS], count, has_model=False)
        for count in _MANY_CONNECTIONS
    ]
    if int8 is not None:
        service_int8 = Competitor(THIS_SERVICE, (*_SERVE, "--model", str(int8)))
        tables.append(Table("int8", [service_int8], connections))
    return tables


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@image_option
@click.option(
    "--connections",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Connections of wrk; without a model, also 64 and 1,000.",
)
@click.option(
    "--seconds", type=click.IntRange(1), default=12, show_default=True, help="Duration of a measurement."
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Measurements per server; the table shows their medians.",
)
@click.option("--only", multiple=True, help="Run only the servers of this name; can be repeated.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("load-test-results/peers"),
    show_default=True,
    help="Folder for reports, logs and the other servers.",
)
def main(
    image: Path, connections: int, seconds: int, rounds: int, only: tuple[str, ...], output: Path
) -> None:
    """Compare this service with other servers that serve the same ResNet-50 on this machine.

    Needs wrk (Debian's package wrk). The other servers are installed under --output.
    """
    require_wrk()
    output.mkdir(parents=True, exist_ok=True)
    weights = write_random_weights(output)
    int8 = None if only and THIS_SERVICE not in only else _quantize(weights, image, output)
    measurements = [
        (table, competitor)
        for _ in range(rounds)
        for table in tables_of(weights, int8, connections)
        for competitor in table.competitors
        if not only or competitor.name in only
    ]
    pythons = {competitor: python_of(competitor, output) for _, competitor in measurements}
    runs: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for table, competitor in (bar := tqdm(measurements)):
        bar.set_description(f"{competitor.name}, {table.name}")
        no_op = {} if table.has_model else {"NOOP": "1"}
        log = output / f"{competitor.name} {table.name}.log".replace(" ", "-")
        with run_competitor(
            competitor, pythons[competitor], log, WEIGHTS=str(weights.absolute()), **no_op
        ) as port:
            url = f"http://127.0.0.1:{port}{competitor.route}"
            wait_until_ready(url, image.read_bytes(), competitor.body_format)
            run_wrk(url, image, competitor.body_format, table.connections, _WARM_UP_S)
            figures = run_wrk(url, image, competitor.body_format, table.connections, seconds)
            runs[table.name, competitor.name].append(figures)
    rows = [
        {"table": table, "server": name, "runs": results, **_medians(results)}
        for (table, name), results in runs.items()
    ]
    results = {"hardware": hardware_info().__dict__, "connections": connections, "rows": rows}
    (output / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    click.echo(write_report(rows, output))


def _medians(results: list[dict[str, float]]) -> dict[str, Any]:
    return {key: statistics.median(result[key] for result in results) for key in results[0]}


def _quantize(weights: Path, image: Path, folder: Path) -> Path | None:
    """Quantize the network and return the checkpoint; None if this machine cannot do it."""
    path = folder / "resnet50-int8.safetensors"
    if path.exists():
        return path
    images = folder / "calibration"
    images.mkdir(exist_ok=True)
    shutil.copy(image, images)
    options = ("--model", "resnet50", "--weights", weights, "--data", images, "--output", path)
    command = [sys.executable, "-m", "resnet_service", "quantize", *map(str, options)]
    return path if subprocess.run(command, check=False).returncode == 0 else None


if __name__ == "__main__":
    try:
        main(prog_name="python -m load_tests.peers")
    except LoadTestError as error:
        sys.exit(f"Error: {error}")
