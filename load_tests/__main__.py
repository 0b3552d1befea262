"""The load tests' command line: python -m load_tests run, capacity, incident, profile or footprint."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from load_tests import profiling, report, wrk
from load_tests.incident import draw_dashboards, slow_for_a_while
from load_tests.report import Requests
from load_tests.resource_usage import footprint as take_footprint
from load_tests.scenarios import SCENARIOS
from load_tests.service import ServiceFailed, serve, started
from monitoring.local import PrometheusMissing, scraping
from resnet_service.client import APIError, Client, ServiceUnavailableError

_LOCUSTFILE: Final = Path(__file__).parent / "locustfile.py"
_WARM_UP_S: Final = 2.0
_SATURATED_S: Final = 10.0
_PATIENCE_S: Final = 180.0
"""For Locust's own start and for the last answers."""


class Load:
    """Locust against one service; what it writes goes into a folder."""

    def __init__(self, url: str, folder: Path, images: Path | None) -> None:
        self._url = url
        self._folder = folder
        self._images = [] if images is None else ["--images", str(images)]
        try:
            with Client(url) as client:
                limits: dict[str, Any] = client.info()["limits"]
        except (APIError, ServiceUnavailableError) as error:
            raise click.ClickException(str(error)) from error
        self._max_batch: int = limits["max_batch"]
        self._max_queue: int = limits["max_queue"]
        self.capacity = self._measured_capacity()
        click.echo(f"{url}: capacity {self.capacity:.0f} requests/s")

    @property
    def full_queue_ms(self) -> float:
        """How long the service needs for all that may wait."""
        return self._max_queue / self.capacity * 1e3

    def run(self, name: str, scenario: str, seconds: float, *options: str) -> Requests:
        """Run Locust once; NAME.html, NAME_stats.csv, NAME.csv (each request) and NAME.log are written."""
        base = self._folder / name
        command = [
            *(sys.executable, "-m", "locust", "--locustfile", str(_LOCUSTFILE), "--headless", "--users", "1"),
            *("--host", self._url, "--html", f"{base}.html", "--csv", str(base), "--logfile", f"{base}.log"),
            *("--exit-code-on-error", "0", "--requests", f"{base}.csv", *self._images),
            *("--scenario", scenario, "--seconds", str(seconds), *options),
        ]
        try:
            subprocess.run(
                command,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                timeout=seconds + _PATIENCE_S,
                check=True,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise click.ClickException(f"Locust did not finish {name}; see {base}.log") from error
        return Requests.read(name, seconds, Path(f"{base}.csv"))

    def follow(self, name: str, scenario: str, seconds: float, *options: str) -> Requests:
        """Run a scenario at its shares of the capacity."""
        return self.run(name, scenario, seconds, "--capacity", str(self.capacity), *options)

    def _measured_capacity(self) -> float:
        """Return how many requests/s the service answers when it is kept busy, and no more."""
        clients = str(min(4 * self._max_batch, self._max_queue))
        run = self.run("capacity", "capacity", _SATURATED_S, "--clients", clients)
        rate = run.answered_per_second(_WARM_UP_S)
        if not rate or run.were("failed").any():
            raise click.ClickException(f"{self._url} does not answer well enough to be loaded: {run.row()}")
        return rate


@contextmanager
def _loaded(command: Sequence[str], host: str | None, folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the URL and the process of the service to load: the one given (no process), or one of our own."""
    folder.mkdir(parents=True, exist_ok=True)
    if host is not None:
        yield host.rstrip("/"), None
        return
    try:
        with started(command, folder / "service.log") as running:
            yield running
    except ServiceFailed as error:
        raise click.ClickException(str(error)) from error


@click.group()
def main() -> None:
    """Load a service and judge what comes of it."""


_model = click.option("--model", default="bundled", show_default=True, help="What the service serves.")
_host = click.option("--host", help="A service that runs already, as in http://localhost:8000.")
_images = click.option(
    "--images",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder of JPEGs instead of drawn ones.",
)
_out = click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="load-test",
    show_default=True,
    help="Folder for reports.",
)


@main.command()
@click.argument("scenarios", nargs=-1, type=click.Choice(list(SCENARIOS)))
@_model
@_host
@_images
@_out
@click.option("--seconds", type=float, help="Length of each scenario; its own if not given.")
@click.option("--p99-ms", default=500.0, show_default=True, help="The target for the answered requests.")
def run(
    scenarios: tuple[str, ...],
    model: str,
    host: str | None,
    images: Path | None,
    out: Path,
    seconds: float | None,
    p99_ms: float,
) -> None:
    """Run SCENARIOS (all by default); the exit status is 1 where a target was broken.

    The targets: no failed request, none rejected, and p99. Where more arrives than the service can do, 429 is
    right, and the time that a full queue takes is added to p99's target.
    """
    with _loaded(serve(model), host, out) as (url, _):
        load = Load(url, out, images)
        runs, broken = [], []
        for name in scenarios or SCENARIOS:
            scenario = SCENARIOS[name]
            lasts = seconds or scenario.seconds
            click.echo(f"{name}: {scenario.description}, {lasts:.0f} s")
            done = load.follow(name, name, lasts)
            report.draw_timeline(done, load.capacity, out / f"{name}.png")
            runs.append(done)
            broken += done.broken(p99_ms + load.full_queue_ms * scenario.overloads, scenario.overloads)
    written = report.table(runs)
    (out / "report.md").write_text(written + "\n", encoding="utf-8")
    click.echo(f"\n{written}\n")
    for line in broken:
        click.echo(f"broken: {line}", err=True)
    click.echo(f"reports: {out}/")
    sys.exit(1 if broken else 0)


@main.command()
@_model
@_host
@_images
@_out
@click.option("--seconds", default=15.0, show_default=True, help="Length of each step.")
def capacity(model: str, host: str | None, images: Path | None, out: Path, seconds: float) -> None:
    """Step through rates up to 1.5 times the capacity, and draw p99 over requests/s."""
    with _loaded(serve(model), host, out) as (url, _):
        load = Load(url, out, images)
        runs = []
        for share in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5):
            runs.append(load.follow(f"{share:.0%}", "level", seconds, "--share", str(share)))
            click.echo("  ".join(runs[-1].row()))
    report.draw_capacity(runs, f"{model}: open loop, {seconds:.0f} s each", out / "capacity.png")
    (out / "capacity.md").write_text(report.table(runs) + "\n", encoding="utf-8")
    click.echo(f"\n{report.table(runs)}\n\nreports: {out}/")


@main.command()
@_model
@_images
@_out
@click.option("--factor", default=4.0, show_default=True, help="How much longer a batch takes while slow.")
@click.option("--before", default=60.0, show_default=True, help="Seconds before the model grows slow.")
@click.option("--during", default=90.0, show_default=True, help="Seconds for which it is slow.")
@click.option("--after", default=60.0, show_default=True, help="Seconds after that.")
def incident(
    model: str, images: Path | None, out: Path, factor: float, before: float, during: float, after: float
) -> None:
    """Slow the model down under a load of half its capacity, and draw what the dashboards show of it."""
    command = [sys.executable, "-m", "load_tests.slow_server", model, str(factor)]
    with _loaded(command, None, out) as (url, process):
        # Before Prometheus begins, or its first minute would show how the capacity was measured.
        load = Load(url, out, images)
        try:
            with scraping(url.removeprefix("http://"), out / "prometheus.log") as prometheus:
                seconds = before + during + after
                click.echo(f"{seconds:.0f} s to go")
                span = slow_for_a_while(process, before, during, after)
                done = load.follow("incident", "level", seconds, "--share", "0.5")
                for path in draw_dashboards(prometheus, span, out):
                    click.echo(f"drawn: {path}")
        except PrometheusMissing as error:
            raise click.ClickException(str(error)) from error
    click.echo(f"\n{report.table([done])}")


_weights = click.option("--weights", help="As for serve.")
_image = click.option(
    "--image",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="The JPEG that each request carries.",
)


@main.command()
@_model
@_weights
@_image
@click.option("--connections", default=16, show_default=True)
@click.option("--seconds", default=10, show_default=True, help="Of the recording.")
@_out
def profile(model: str, weights: str | None, image: Path, connections: int, seconds: int, out: Path) -> None:
    """Show where the CPU time of a request goes, stage by stage; needs wrk, and root on macOS."""
    wrk.require()
    with _loaded(serve(model, weights), None, out) as (url, process):
        rate, stages = profiling.profile(f"{url}/predict", process.pid, image, connections, seconds)
    total = sum(stages.values())
    click.echo(f"{rate:.0f} requests/s, {total:.2f} ms of CPU each\n")
    click.echo("| stage | CPU ms a request | share |\n|---|---|---|")
    for stage, spent in sorted(stages.items(), key=lambda item: -item[1]):
        click.echo(f"| {stage} | {spent:.2f} | {spent / total:.0%} |")


@main.command()
@_model
@_weights
@_image
@click.option("--requests", default=20_000, show_default=True, help="To post before memory is read again.")
@click.option("--idle", "idle_s", default=30.0, show_default=True, help="Seconds to leave it alone.")
@_out
def footprint(model: str, weights: str | None, image: Path, requests: int, idle_s: float, out: Path) -> None:
    """Show how soon a service is ready, what it takes when idle, and whether its memory grows; needs wrk."""
    wrk.require()
    out.mkdir(parents=True, exist_ok=True)
    try:
        taken = take_footprint(serve(model, weights), image, out / "service.log", requests, idle_s)
    except ServiceFailed as error:
        raise click.ClickException(str(error)) from error
    click.echo("| | |\n|---|---|")
    for what, figure in taken.rows():
        click.echo(f"| {what} | {figure} |")


if __name__ == "__main__":
    main()
