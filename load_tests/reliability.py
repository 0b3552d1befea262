"""`python -m load_tests.reliability`: the long tests, each against a service of its own, and tables of what they found.

docs/reliability.md has the promises and figures of such a run.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from load_tests import worst_case as largest
from load_tests.fuzz.api import api_fuzz
from load_tests.fuzz.fuzzers import FuzzerFailed, decode_fuzz, parse_fuzz
from load_tests.overload import overload
from load_tests.plots import draw_overload, draw_soak
from load_tests.request_log import Verdict
from load_tests.service import ServiceFailed, serve, started
from load_tests.slow_clients import crowd
from load_tests.soak import soak

_out = click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("reliability-results"),
    show_default=True,
    help="Folder for tables, plots and the service's logs.",
)
_model = click.option("--model", default="bundled", show_default=True, help="What the service serves.")
_weights = click.option("--weights", help="As for serve.")


@click.group()
def main() -> None:
    """Try whether the service keeps what it promises when the world does not."""


@main.command("overload")
@_model
@_weights
@_out
@click.option("--factor", default=10.0, show_default=True, help="How many times its capacity arrives.")
@click.option("--seconds", default=120.0, show_default=True)
def overload_(model: str, weights: str | None, out: Path, factor: float, seconds: float) -> None:
    """Send many times what the service can do; a large network on a CPU leaves the load generator room."""
    with _served(out, "overload", model, weights) as (url, process):
        done = overload(url, process.pid, factor=factor, seconds=seconds, progress=True)
    draw_overload(done, f"{model}: {factor:g} times its capacity for {seconds:.0f} s", out / "overload.png")
    _tell(out, "overload", done.rows(), done.figures())


@main.command("crowds")
@_out
@click.option("--idle", default=10_000, show_default=True, help="Connections that ask nothing.")
@click.option("--slow", default=2_000, show_default=True, help="Clients that send a byte a second.")
@click.option("--seconds", default=20.0, show_default=True)
def crowds(out: Path, idle: int, slow: int, seconds: float) -> None:
    """Keep thousands of connections, idle or slow, beside somebody who wants an answer."""
    rows: list[Verdict] = []
    with _served(out, "crowds", "bundled", None, "--header-timeout-s", str(seconds * 10)) as (url, process):
        rows += crowd(url, process.pid, "idle", idle, seconds).rows()
    with _served(out, "crowds", "bundled", None) as (url, process):
        rows += crowd(url, process.pid, "slow", slow, seconds).rows()
    _tell(out, "crowds", rows)


@main.command("fuzz")
@_out
@click.option("--decode", default=300_000, show_default=True, help="Inputs for the decoder.")
@click.option("--parse", default=30_000, show_default=True, help="Bodies for the parsers.")
@click.option("--api", default=20_000, show_default=True, help="Requests for the whole API, about.")
def fuzz(out: Path, decode: int, parse: int, api: int) -> None:
    """Invent input for the decoder, the parsers and the whole API."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        decoded = decode_fuzz(decode, out)
    except FuzzerFailed as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"decoder: {decoded.runs:,} inputs in {decoded.seconds:.0f} s")
    parsed = parse_fuzz(parse)
    click.echo(f"parsers: {sum(parsed.inputs.values()):,} bodies in {parsed.seconds:.0f} s")
    with _served(out, "fuzz", "bundled", None) as (url, process):
        asked = api_fuzz(url, api, process.pid)
        alive = process.poll() is None
    inputs = decoded.runs + sum(parsed.inputs.values()) + sum(asked.requests.values())
    problems = [str(path) for path in decoded.crashes] + parsed.failures + asked.failures
    for problem in problems:
        click.echo(problem, err=True)
    rows = [
        Verdict("at least 100,000 inputs", f"{inputs:,}", inputs >= 100_000),
        Verdict("no crash, no unpromised error, no 500", f"{len(problems)}", not problems and alive),
        Verdict(
            "memory of the decoder, the parsers, the service grows by less than 50 MB after the warm-up",
            f"{decoded.grown_mb:+.1f}, {parsed.grown_mb:+.1f}, {asked.grown_mb:+.1f} MB",
            max(decoded.grown_mb, parsed.grown_mb, asked.grown_mb) < 50,
        ),
        Verdict(
            "/healthz answers within 100 ms meanwhile",
            f"slowest {asked.slowest_health_ms:.0f} ms of {asked.asked_health:,} answers",
            asked.slowest_health_ms < 100 and not asked.failed_health,
        ),
    ]
    statuses = ", ".join(f"{status}: {count:,}" for status, count in sorted(asked.statuses.items()))
    _tell(out, "fuzz", rows, [("answers of the API by status", statuses)])


@main.command("largest")
@_out
def largest_(out: Path) -> None:
    """Send the most that one request may ask for, of every kind, and see who has to wait."""
    with _served(out, "largest", "bundled", None) as (url, _):
        results = largest.largest(url, progress=True)
    _tell(out, "largest", largest.rows(results), largest.figures(results))


@main.command("soak")
@_model
@_out
@click.option("--seconds", default=1800.0, show_default=True)
def soak_(model: str, out: Path, seconds: float) -> None:
    """Half an hour of mixed load with bad input and clients that hang up."""
    with _served(out, "soak", model, None) as (url, process):
        done = soak(url, process.pid, seconds=seconds, progress=True)
    draw_soak(done, f"{model}: {seconds / 60:.0f} minutes of mixed load", out / "soak.png")
    _tell(out, "soak", done.rows(), done.figures())


def _served(out: Path, name: str, model: str, weights: str | None, *flags: str) -> Any:
    out.mkdir(parents=True, exist_ok=True)
    return started([*serve(model, weights), *flags], out / f"{name}.log")


def _tell(out: Path, name: str, rows: Iterable[Verdict], figures: Iterable[tuple[str, str]] = ()) -> None:
    """Print the table, write it to a file, and end with 1 where a promise was broken."""
    rows = list(rows)
    lines = ["| promise | figure | |", "|---|---|---|"]
    lines += [f"| {row.promise} | {row.figure} | {'kept' if row.kept else '**broken**'} |" for row in rows]
    measured = [f"| {what} | {figure} |" for what, figure in figures]
    if measured:
        lines += ["", "| measured | |", "|---|---|", *measured]
    text = "\n".join(lines)
    (out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    click.echo(f"\n{text}\n\nin {out}/")
    sys.exit(0 if all(row.kept for row in rows) else 1)


if __name__ == "__main__":
    try:
        main()
    except ServiceFailed as failed:
        raise SystemExit(str(failed)) from failed
