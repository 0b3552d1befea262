"""The load tests themselves: their arrivals, their judgement, and the incident that they can make."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from load_tests.scenarios import SCENARIOS
from tests.conftest import REPOSITORY, Running


def load_tests(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "load_tests", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", SCENARIOS)
def test_arrivals_follow_the_scenario(name: str) -> None:
    """Over many requests, each part of a scenario has the rate and the kinds that it says."""
    scenario = SCENARIOS[name]
    arrivals = list(scenario.arrivals(capacity=2000, seed=1))
    seconds = np.array([second for second, _ in arrivals])
    edges = np.linspace(0, scenario.seconds, 16)
    moments = np.linspace(0, scenario.seconds, 1501)[:-1]
    shares = np.array([scenario.share(moment) for moment in moments]).reshape(15, 100).mean(1)
    expected = 2000 * shares * scenario.seconds / 15
    found = np.histogram(seconds, edges)[0]
    assert np.abs(found - expected).max() < 5 * np.sqrt(expected.max())
    for kind, share in (("bad", scenario.bad), ("hang-up", scenario.hang_ups)):
        assert np.mean([kind == sent for _, sent in arrivals]) == pytest.approx(share, abs=0.02)


def test_the_same_seed_gives_the_same_arrivals() -> None:
    """A run can be repeated request by request."""
    first, second, other = (list(SCENARIOS["bad"].arrivals(50, seed)) for seed in (1, 1, 2))
    assert first == second != other


def test_scenarios_are_run_and_judged(server: Running, tmp_path: Path) -> None:
    """Bad pictures and hang-ups break no target; a report, a page and a line for each request are left."""
    result = load_tests(
        *("run", "bad", "hang-ups", "--host", server.url, "--capacity", "60", "--seconds", "3"),
        *("--p99-ms", "10000", "--out", str(tmp_path)),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("bad", "hang-ups"):
        assert f"| {name}" in (tmp_path / "report.md").read_text()
        assert (tmp_path / f"{name}.html").stat().st_size
        assert (tmp_path / f"{name}.png").stat().st_size
    with (tmp_path / "bad.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["status"] for row in rows if row["kind"] == "bad"} <= {"415", "422"}
    answered = [row for row in rows if row["status"] == "200"]
    assert answered
    for row in answered:
        stages = float(row["decode_ms"]) + float(row["queue_ms"]) + float(row["device_ms"])
        assert 0 < stages < float(row["latency_ms"])


def test_a_broken_target_fails_the_run(server: Running, tmp_path: Path) -> None:
    """With a p99 that nothing can reach, the run says which scenario broke it and ends with 1."""
    result = load_tests(
        *("run", "steady", "--host", server.url, "--capacity", "30", "--seconds", "2"),
        *("--p99-ms", "0.001", "--out", str(tmp_path)),
    )
    assert result.returncode == 1
    assert "broken: steady: p99" in result.stderr


def test_an_incident_is_drawn(tmp_path: Path) -> None:
    """The model grows slow, and both dashboards are drawn from what a real Prometheus saw."""
    if shutil.which("prometheus") is None:
        pytest.skip("needs prometheus (Debian's package prometheus)")
    result = load_tests(
        *("incident", "--model", "bundled", "--before", "2", "--during", "2", "--after", "1"),
        *("--out", str(tmp_path)),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("overview", "detail"):
        assert (tmp_path / f"incident-{name}.png").stat().st_size > 20_000
