"""The performance commands of the load tests, against real services."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import PHOTOGRAPHS, REPOSITORY
from tests.support.server import Running

pytestmark = pytest.mark.exclusive

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk: apt-get install wrk")


def load_tests(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "load_tests", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_scenarios_are_run_and_reported(server: Running, tmp_path: Path) -> None:
    """Bad images are rejected, disconnects are reported, and each scenario has a table, a CSV and a plot."""
    options = ("--host", server.url, "--seconds", "2", "--p99-ms", "10000", "--output", tmp_path)
    result = load_tests("run", "bad", "disconnects", *options)
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("bad", "disconnects"):
        assert f"| {name}" in (tmp_path / "report.md").read_text()
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "bad.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["outcome"] for row in rows if row["kind"] == "bad"} == {"invalid"}
    succeeded = [row for row in rows if row["outcome"] == "succeeded"]
    assert succeeded
    for row in succeeded:
        stages_ms = float(row["decode_ms"]) + float(row["queue_ms"]) + float(row["device_ms"])
        assert 0 < stages_ms < float(row["latency_ms"])
    assert "disconnected" in (tmp_path / "disconnects.csv").read_text()


def test_missed_target_fails_the_run(server: Running, tmp_path: Path) -> None:
    """A p99 over its target is reported with its scenario, and the exit status is 1."""
    options = ("--host", server.url, "--seconds", "0.5", "--p99-ms", "0.001", "--output", tmp_path)
    result = load_tests("run", "steady", *options)
    assert result.returncode == 1
    assert "missed target: steady: p99" in result.stderr


def test_capacity_steps_through_rates(server: Running, tmp_path: Path) -> None:
    """The table has a line per rate, up to 150 % of the capacity; the model is that of --host."""
    result = load_tests("capacity", "--host", server.url, "--seconds", "0.3", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    table = (tmp_path / "capacity.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2::8]] == ["10%", "150%"]
    assert (tmp_path / "capacity.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r": cifar10 \(cifar10\.safetensors\), \w+ \w+ on cpu: capacity \d+", result.stdout)


def test_run_that_cannot_start_ends_with_a_message(server: Running, tmp_path: Path) -> None:
    """The reasons are a folder without images, a host that is down, and a service that does not start."""
    output = ("--output", tmp_path / "output")
    for arguments, message in (
        (("--host", server.url, "--images", tmp_path), "no JPEG files in"),
        (("--host", "http://127.0.0.1:9"), "http://127.0.0.1:9"),
        (("--model", "resnet9000"), "the service did not start; see"),
    ):
        result = load_tests("run", *arguments, *output)
        assert result.returncode == 1
        assert result.stderr.startswith("Error: ")
        assert message in result.stderr


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus: apt-get install prometheus")
def test_incident_is_drawn(tmp_path: Path) -> None:
    """Both dashboards are drawn from the data of a real Prometheus while the model is slow."""
    phases = ("--before", "1", "--during", "1", "--after", "1")
    result = load_tests("incident", *phases, "--output", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "| incident" in result.stdout
    for name in ("overview", "detail"):
        assert (tmp_path / f"incident-{name}.png").stat().st_size > 20_000


@needs_wrk
@pytest.mark.skipif(sys.platform != "linux", reason="py-spy needs root on other systems")
def test_profile_accounts_for_all_cpu_time(tmp_path: Path) -> None:
    """Each stage has its share of the CPU time, in Python code and outside; the shares add up to 100 %."""
    image = ("--image", PHOTOGRAPHS / "cat.jpg")
    result = load_tests("profile", *image, "--seconds", "1", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    shares = dict(re.findall(r"\| (.+) \| [0-9.]+ \| (\d+)% \|", result.stdout))
    assert {
        "decode, resize and crop",
        "network",
        "HTTP, sockets, event loop",
        "read the form",
        "metrics and logs",
    } <= set(shares)
    assert sum(map(int, shares.values())) == pytest.approx(100, abs=len(shares) / 2)


@needs_wrk
def test_resources_measures_startup_idle_time_and_memory(tmp_path: Path) -> None:
    """Each value has its unit."""
    image = ("--image", PHOTOGRAPHS / "cat.jpg")
    result = load_tests("resources", *image, "--requests", "50", "--idle", "0.5", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    values = [line.split("|")[2].strip() for line in result.stdout.splitlines()[2:]]
    units = [r"[\d.]+ s", r"[\d.]+ s", r"[\d.]+% of a core", r"\d+ MiB", r"\d+ MiB \([+-][\d.]+%\)"]
    assert len(values) == len(units)
    for value, unit in zip(values, units, strict=True):
        assert re.fullmatch(unit, value), value


@pytest.mark.skipif(shutil.which("h2load") is None, reason="needs h2load: apt-get install nghttp2-client")
@pytest.mark.parametrize("options", [("--workers", "2"), ("--no-network",)])
def test_grpc_is_compared_with_rest(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Each request has its images/s, relative to both of REST, and its CPU time, in a table and in JSON."""
    sizes = ("--clients", "4", "--seconds", "1", "--rounds", "2", "--min-ratio", "0")
    image = ("--image", PHOTOGRAPHS / "cat.jpg", "--output", tmp_path)
    result = load_tests("grpc", *image, *sizes, *options)
    assert result.returncode == 0, result.stdout + result.stderr
    requests = json.loads((tmp_path / "grpc.json").read_text())["requests"]
    assert list(requests) == ["/predict, raw body", "/v2, binary data", "gRPC", "gRPC, one connection"]
    for name, request in requests.items():
        assert f"| {name} |" in (tmp_path / "grpc.md").read_text()
        for run in request["runs"]:
            assert min(run["images_per_s"], run["server_ms"]) > 0
            assert run["client_ms"] >= 0  # the kernel counts in steps of 10 ms
        assert len(request["runs"]) == len(request["ratios"]) == 2
    assert requests["/v2, binary data"]["ratios"]["/v2, binary data"] == 1


@pytest.mark.skipif(shutil.which("h2load") is None, reason="needs h2load: apt-get install nghttp2-client")
def test_missed_ratio_of_grpc_fails(tmp_path: Path) -> None:
    """The message has both requests and the ratio, and the exit status is 1."""
    sizes = ("--clients", "2", "--seconds", "0.5", "--rounds", "1", "--min-ratio", "1000")
    result = load_tests("grpc", "--image", PHOTOGRAPHS / "cat.jpg", *sizes, "--output", tmp_path)
    assert result.returncode == 1
    assert len(re.findall(r"missed target: gRPC.* of the images/s of /", result.stderr)) == 4
