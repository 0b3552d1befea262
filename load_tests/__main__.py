"""The load tests' command line: `python -m load_tests run`, `capacity` and `incident`."""

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from load_tests import report
from load_tests.incident import draw_dashboards, slow_for_a_while
from load_tests.report import Requests
from load_tests.scenarios import SCENARIOS
from load_tests.service import serve, started
from monitoring.local import scraping

_LOCUSTFILE: Final = Path(__file__).parent / "locustfile.py"


class Load:
    """Locust against one service; what it writes goes into a folder."""

    def __init__(self, url: str, folder: Path, pictures: Path | None) -> None:
        self._url = url
        self._folder = folder
        self._pictures = [] if pictures is None else ["--pictures", str(pictures)]

    def run(self, name: str, *options: str) -> Requests:
        """Run Locust once; NAME.html, NAME_stats.csv, NAME.csv (each request) and NAME.log are written."""
        base = self._folder / name
        requests = base.with_suffix(".csv")
        command = [
            *(sys.executable, "-m", "locust", "--locustfile", str(_LOCUSTFILE), "--headless", "--users", "1"),
            *("--host", self._url, "--html", f"{base}.html", "--csv", str(base), "--logfile", f"{base}.log"),
            *("--exit-code-on-error", "0", "--requests", str(requests), *self._pictures, *options),
        ]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, check=True)
        return Requests.read(name, requests)

    def capacity(self) -> float:
        """Return how many requests/s the service answers when it is kept busy."""
        run = self.run("capacity", "--scenario", "capacity", "--seconds", "8")
        steady = run.answered & (run.due_s > 2)
        return float(steady.sum() / (run.due_s.max() - 2))

    def queue_limit(self) -> float:
        """Return how many pictures may wait, as the service says."""
        with urllib.request.urlopen(f"{self._url}/metrics", timeout=10) as answer:
            found = re.search(r"^inference_queue_limit (\S+)", answer.read().decode(), re.MULTILINE)
        if found is None:
            raise click.ClickException(f"{self._url}/metrics has no inference_queue_limit")
        return float(found[1])


@contextmanager
def _service(model: str, host: str | None, folder: Path) -> Iterator[str]:
    """Yield the URL of the service to load: the one given, or one started here."""
    folder.mkdir(parents=True, exist_ok=True)
    if host is not None:
        yield host
        return
    try:
        with started(serve(model), folder / "service.log") as (url, _):
            yield url
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error


@click.group()
def main() -> None:
    """Load a service and judge what comes of it."""


_model = click.option("--model", default="bundled", show_default=True, help="What the service serves.")
_host = click.option("--host", help="A service that runs already, as in http://localhost:8000.")
_pictures = click.option(
    "--pictures",
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
@_pictures
@_out
@click.option("--capacity", type=float, help="Requests/s that the service can do; measured if not given.")
@click.option("--seconds", type=float, help="Length of each scenario; its own if not given.")
@click.option("--p99-ms", default=500.0, show_default=True, help="The target for the answered requests.")
def run(
    scenarios: tuple[str, ...],
    model: str,
    host: str | None,
    pictures: Path | None,
    out: Path,
    capacity: float | None,
    seconds: float | None,
    p99_ms: float,
) -> None:
    """Run SCENARIOS (all by default); the exit status is 1 where a target was broken.

    The targets: no failed request, and p99. Where more arrives than the service can do, the time that a full
    queue takes is added to p99's target, and refusals with 429 are right.
    """
    with _service(model, host, out) as url:
        load = Load(url, out, pictures)
        rate = capacity or load.capacity()
        queue_ms = load.queue_limit() / rate * 1e3
        click.echo(f"{url}: capacity {rate:.0f} requests/s")
        runs, broken = [], []
        for name in scenarios or SCENARIOS:
            scenario = SCENARIOS[name]
            lasts = seconds or scenario.seconds
            click.echo(f"{name}: {scenario.description}, {lasts:.0f} s")
            done = load.run(name, "--scenario", name, "--capacity", str(rate), "--seconds", str(lasts))
            report.draw_timeline(done, rate, out / f"{name}.png")
            runs.append(done)
            broken += done.broken(p99_ms + queue_ms * scenario.overloads)
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
@_pictures
@_out
@click.option("--seconds", default=15.0, show_default=True, help="Length of each step.")
def capacity(model: str, host: str | None, pictures: Path | None, out: Path, seconds: float) -> None:
    """Step through rates up to 1.5 times the capacity, and draw p99 over requests/s."""
    with _service(model, host, out) as url:
        load = Load(url, out, pictures)
        rate = load.capacity()
        click.echo(f"{url}: capacity {rate:.0f} requests/s")
        runs = []
        for share in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5):
            step = ("--scenario", "level", "--share", str(share), "--seconds", str(seconds))
            runs.append(load.run(f"{share:.0%}", *step, "--capacity", str(rate)))
            click.echo("  ".join(runs[-1].row()))
    report.draw_capacity(runs, f"{model}: open loop, {seconds:.0f} s each", out / "capacity.png")
    (out / "capacity.md").write_text(report.table(runs) + "\n", encoding="utf-8")
    click.echo(f"\n{report.table(runs)}\n\nreports: {out}/")


@main.command()
@_model
@_pictures
@_out
@click.option("--factor", default=4.0, show_default=True, help="How much longer a batch takes while slow.")
@click.option("--before", default=60.0, show_default=True, help="Seconds before the model grows slow.")
@click.option("--during", default=90.0, show_default=True, help="Seconds for which it is slow.")
@click.option("--after", default=60.0, show_default=True, help="Seconds after that.")
def incident(
    model: str, pictures: Path | None, out: Path, factor: float, before: float, during: float, after: float
) -> None:
    """Slow the model down under a load of half its capacity, and draw what the dashboards show of it."""
    seconds = before + during + after
    out.mkdir(parents=True, exist_ok=True)
    data = out / "prometheus"
    data.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "load_tests.slowed", model, str(factor)]
    with (
        started(command, out / "service.log") as (url, process),
        scraping(url.removeprefix("http://"), data) as prometheus,
    ):
        load = Load(url, out, pictures)
        rate = load.capacity()
        click.echo(f"{url}: capacity {rate:.0f} requests/s; {seconds:.0f} s to go")
        span = slow_for_a_while(process, before, during, after)
        step = ("--scenario", "level", "--share", "0.5", "--seconds", str(seconds), "--capacity", str(rate))
        done = load.run("incident", *step)
        report.draw_timeline(done, rate, out / "incident.png")
        for path in draw_dashboards(prometheus, span, out):
            click.echo(f"drawn: {path}")


if __name__ == "__main__":
    main()
