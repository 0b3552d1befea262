"""The load tests themselves: their arrivals, their judgement, and the incident that they can make."""

import csv
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from load_tests.peers import report as peers
from load_tests.report import STAGES, Requests
from load_tests.scenarios import SCENARIOS
from tests.support import REPOSITORY
from tests.support.server import Running


def load_tests(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "load_tests", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "seconds_of_capacity"),
    [("steady", 18), ("ramp", 36), ("burst", 15.8), ("mixed", 1.8), ("bad", 15), ("hang-ups", 15)],
)
def test_as_many_arrive_as_the_scenario_says(name: str, seconds_of_capacity: float) -> None:
    """The requests of a scenario are those of its rate, and a fifth means trouble where it says so."""
    arrivals = list(SCENARIOS[name].arrivals(capacity=1000, seed=1))
    assert len(arrivals) == pytest.approx(1000 * seconds_of_capacity, rel=0.05)
    kinds: Counter[str] = Counter(kind for _, kind in arrivals)
    trouble = {"bad": "bad", "hang-ups": "hang-up"}.get(name)
    assert (kinds["bad"] + kinds["hang-up"]) / len(arrivals) == pytest.approx(0.2 * bool(trouble), abs=0.01)
    assert trouble is None or kinds[trouble]


def test_bursts_come_when_they_should() -> None:
    """Two seconds of a burst bring twice the capacity, and the seconds before a third of it."""
    seconds = [second for second, _ in SCENARIOS["burst"].arrivals(capacity=1000, seed=1)]
    assert sum(10 <= second < 12 for second in seconds) == pytest.approx(4000, rel=0.05)
    assert sum(8 <= second < 10 for second in seconds) == pytest.approx(600, rel=0.15)


def test_the_same_seed_gives_the_same_arrivals() -> None:
    """A run can be repeated request by request."""
    first, second, other = (list(SCENARIOS["bad"].arrivals(50, seed)) for seed in (1, 1, 2))
    assert first == second != other


def requests(*outcomes: str, latency_ms: float = 10.0) -> Requests:
    """Make a run of one second whose requests had these outcomes."""
    count = len(outcomes)
    same = np.full(count, latency_ms)
    stages = dict.fromkeys(STAGES, same)
    return Requests(
        "made", 1.0, np.linspace(0, 0.9, count), np.zeros(count), np.array(outcomes), same, stages
    )


@pytest.mark.parametrize(
    ("outcomes", "may_reject", "words"),
    [
        (["answered", "invalid", "hung up"], False, []),
        (["answered", "failed"], False, ["1 of 2 requests failed"]),
        (["answered", "failed"], True, ["1 of 2 requests failed"]),
        (["answered", "rejected"], False, ["1 of 2 requests were rejected"]),
        (["answered", "rejected"], True, []),
        (["rejected"], True, ["p99 is nan"]),
    ],
)
def test_targets(outcomes: list[str], may_reject: bool, words: list[str]) -> None:
    """A failure always breaks the targets, a rejection where there is no overload, and so does no answer."""
    broken = requests(*outcomes).broken(p99_ms=20, may_reject=may_reject)
    assert len(broken) == len(words)
    assert all(word in line for word, line in zip(words, broken, strict=True))


def test_a_p99_over_its_target_breaks_it() -> None:
    """The p99 of the answered requests decides."""
    assert requests("answered", latency_ms=21).broken(p99_ms=20, may_reject=False)
    assert not requests("answered", latency_ms=19).broken(p99_ms=20, may_reject=False)


def test_answers_after_the_end_do_not_count_as_throughput() -> None:
    """What is answered while the queue empties afterwards is no proof of speed."""
    assert requests("answered", "answered", latency_ms=10).answered_per_second() == 2
    assert requests("answered", "answered", latency_ms=500).answered_per_second() == 1


def test_scenarios_are_run_and_judged(server: Running, tmp_path: Path) -> None:
    """Against a real service every scenario with trouble leaves a report, and its clients do hang up."""
    result = load_tests(
        *("run", "bad", "hang-ups", "--host", server.url, "--seconds", "3", "--p99-ms", "10000"),
        *("--out", str(tmp_path)),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("bad", "hang-ups"):
        assert f"| {name}" in (tmp_path / "report.md").read_text()
        assert (tmp_path / f"{name}.html").stat().st_size
        assert (tmp_path / f"{name}.png").stat().st_size
    with (tmp_path / "bad.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["outcome"] for row in rows if row["kind"] == "bad"} == {"invalid"}
    answered = [row for row in rows if row["outcome"] == "answered"]
    assert answered
    for row in answered:
        stages = float(row["decode_ms"]) + float(row["queue_ms"]) + float(row["device_ms"])
        assert 0 < stages < float(row["latency_ms"])
    assert server.metric("inference_images_total", outcome="cancelled") > 0


def test_a_broken_target_fails_the_run(server: Running, tmp_path: Path) -> None:
    """With a p99 that nothing can reach, the run says which scenario broke it and ends with 1."""
    result = load_tests(
        *("run", "mixed", "--host", server.url, "--seconds", "2", "--p99-ms", "0.001"),
        *("--out", str(tmp_path)),
    )
    assert result.returncode == 1
    assert "broken: mixed: p99" in result.stderr


def test_what_cannot_be_run_ends_with_a_message(server: Running, tmp_path: Path) -> None:
    """A folder without images, and a service that is not there, end the run at once."""
    without = load_tests("run", "--host", server.url, "--images", str(tmp_path), "--out", str(tmp_path / "1"))
    assert without.returncode == 1
    assert "Locust did not finish capacity" in without.stderr
    assert "no JPEG in" in (tmp_path / "1" / "capacity.log").read_text()
    absent = load_tests("run", "--host", "http://127.0.0.1:9", "--out", str(tmp_path / "2"))
    assert absent.returncode == 1
    assert "does not answer" in absent.stderr
    rejected = load_tests("run", "--model", "resnet9000", "--out", str(tmp_path / "3"))
    assert rejected.returncode == 1
    assert "the service did not start" in rejected.stderr


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


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk: apt-get install wrk")
@pytest.mark.skipif(sys.platform != "linux", reason="py-spy needs root elsewhere")
def test_a_profile_accounts_for_the_cpu_time(tmp_path: Path) -> None:
    """Every stage of a request, in Python or not, has its share of the CPU time; together they are all."""
    Image.effect_noise((500, 375), 60).convert("RGB").save(tmp_path / "noise.jpg")
    arguments = ["--image", str(tmp_path / "noise.jpg"), "--seconds", "2", "--out", str(tmp_path / "out")]
    result = load_tests("profile", "--model", "bundled", *arguments)
    assert result.returncode == 0, result.stderr
    shares = dict(re.findall(r"\| (.+) \| [0-9.]+ \| (\d+)% \|", result.stdout))
    stages = {"decode, resize and crop", "network", "HTTP, sockets, event loop", "read the form", "measure"}
    assert stages <= set(shares)
    assert sum(map(int, shares.values())) == pytest.approx(100, abs=len(shares) / 2)


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk: apt-get install wrk")
def test_a_footprint_has_the_start_the_idle_time_and_the_memory(tmp_path: Path, jpeg: bytes) -> None:
    """A service is started twice and loaded; each figure is there, in its unit."""
    (tmp_path / "image.jpg").write_bytes(jpeg)
    arguments = ["--image", str(tmp_path / "image.jpg"), "--requests", "100", "--idle", "1"]
    result = load_tests("footprint", "--model", "bundled", *arguments, "--out", str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    figures = [line.split("|")[2].strip() for line in result.stdout.splitlines()[2:]]
    units = [r"[\d.]+ s", r"[\d.]+ s", r"[\d.]+% of a core", r"\d+ MiB", r"\d+ MiB \([+-][\d.]+%\)"]
    assert len(figures) == len(units)
    for figure, unit in zip(figures, units, strict=True):
        assert re.fullmatch(unit, figure), figure


def test_peers_are_compared_with_the_best_of_them(tmp_path: Path) -> None:
    """Ratios are to the best other server, for int8 to the best at default precision."""

    def row(table: str, server: str, rate: float) -> dict[str, Any]:
        runs = [{"rate": speed * rate} for speed in (0.5, 1.0, 1.1)]  # the machine's, round by round
        return {"table": table, "server": server, "rate": rate, "p50_ms": 1.0, "p99_ms": 2.0, "runs": runs}

    rows = [
        row("default precision", "this service", 30.0),
        row("default precision", "one", 10.0),
        row("default precision", "other", 15.0),
        row("no model", "this service", 500.0),
        row("no model", "one", 250.0),
        row("int8", "this service", 60.0),
    ]
    table = peers.write(rows, tmp_path)
    ratios = [line.split("|")[4].strip() for line in table.splitlines()[2:]]
    assert ratios == ["2.00", "0.67", "1.00", "2.00", "1.00", "4.00"]
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")
