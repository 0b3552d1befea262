"""Short versions of the long reliability tests: requests, counts and checks, but never times."""

import math
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from load_tests import worst_case
from load_tests.http_connection import post_request
from load_tests.load_generator import arrival_times, measure_capacity
from load_tests.models import run_models, write_repository
from load_tests.overload import run_overload
from load_tests.plots import draw_overload, draw_soak
from load_tests.priorities import run_priorities
from load_tests.report import Check
from load_tests.request_log import DISCONNECTED
from load_tests.retry_storm import measure_peak, run_retry_storm
from load_tests.service import run_service, serve_command, write_random_weights
from load_tests.slow_clients import run_slow_clients
from load_tests.soak import SHARES, run_soak
from load_tests.worst_case import WorstCase
from monitoring.local import free_port
from resnet_service.settings import Settings
from tests.support.processes import started
from tests.support.server import Running, serving

pytestmark = pytest.mark.exclusive


def results_of(checks: Iterable[Check]) -> dict[str, bool]:
    return {check.guarantee: check.passed for check in checks}


def test_overload_is_recorded_request_by_request(jpeg: bytes, tmp_path: Path) -> None:
    """Each request succeeds or is rejected, as the service counts too, and each guarantee is checked."""
    with serving(Settings(model="cifar10", max_queue=2)) as server:
        result = run_overload(server.url, os.getpid(), [jpeg], factor=3, seconds=1, capacity_s=0.5)
        rejected_by_service = server.metric("inference_rejected_total", reason="queue_full")
    load, light = result.load, result.light
    assert len(load) == len(list(arrival_times(3 * result.capacity_rps, 1, seed=0)))
    assert load.has_status(200).any()
    assert load.has_status(429).any()
    assert load.has_status(200, 429).all()
    assert light.has_status(200, 429).all()
    assert rejected_by_service == load.has_status(429).sum() + light.has_status(429).sum()
    checks = results_of(result.checks())
    assert len(checks) == 10
    assert checks["every 429 has a Retry-After"]
    assert checks["every status is 200 or 429"]
    for probes in result.monitor.probes.values():
        assert probes.has_status(200).all()
    assert not math.isnan(result.retry_after_ratio)
    assert all(value for _, value in result.measurements())
    draw_overload(result, "short", tmp_path / "overload.png")
    assert (tmp_path / "overload.png").read_bytes().startswith(b"\x89PNG")


def test_soak_sends_every_kind_of_request(server: Running, jpeg: bytes, tmp_path: Path) -> None:
    """Valid images are classified, bad ones rejected, and disconnects have no effect on other requests."""
    capacity_rps = measure_capacity(server.url, [post_request(server.url, jpeg, "typical")], 4, 0.5)
    seconds = max(3, 100 / (0.3 * capacity_rps))  # so that each kind is among the requests
    result = run_soak(server.url, os.getpid(), seconds, capacity_s=0.5, share=0.3)
    assert len(result.load) == len(list(arrival_times(0.3 * result.capacity_rps, seconds, seed=0)))
    assert set(result.load.kind) == set(SHARES)
    statuses = dict(result.statuses_by_kind())
    assert sum(sum(counts.values()) for counts in statuses.values()) == len(result.load)
    assert set(statuses["disconnect"]) == {DISCONNECTED}
    assert set(statuses["bad"]) == {"415", "422"}
    for kind in ("typical", "mixed", "batch"):
        assert set(statuses[kind]) == {"200"}
    checks = results_of(result.checks())
    assert len(checks) == 10
    for guarantee in (
        "no response is a 5xx",
        "no connection fails",
        "every valid image is classified",
        "every bad image gets a 4xx",
    ):
        assert checks[guarantee]
    assert all(value for _, value in result.measurements())
    draw_soak(result, "short", tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


def test_retry_storm_is_measured_on_both_ports(jpeg: bytes, tmp_path: Path) -> None:
    """All clients are served, and both ports are probed meanwhile."""
    image = tmp_path / "image.jpg"
    image.write_bytes(jpeg)
    port = str(free_port())
    management_url = f"http://127.0.0.1:{port}"
    with started(RESNET_SERVICE_MANAGEMENT_PORT=port) as (process, _, url):
        peak_rps = measure_peak(url, management_url, image, 1)
        result = run_retry_storm(url, management_url, process.pid, image, 200, peak_rps, 1)
    assert peak_rps > 0
    assert result.goodput_rps > 0
    assert (result.rejected, result.failed) == (0, 0)
    for prober in (result.main, result.management):
        assert prober.probes > 0
        assert prober.failures == 0
    assert len(list(result.checks())) == 6
    assert all(value for _, value in result.measurements())


def test_priorities_are_measured_under_four_loads(server: Running) -> None:
    """Interactive and bulk requests succeed alone and beside each other, and each guarantee is checked."""
    result = run_priorities(server.url, seconds=2, share=0.3)
    for log, kinds in (
        (result.alone, {"interactive"}),
        (result.bulk, {"bulk"}),
        (result.beside, {"interactive", "bulk"}),
        (result.saturated, {"interactive", "bulk"}),
    ):
        assert set(log.kind) == kinds
        assert log.has_status(200).all()
    assert result.batch_s > 0
    assert len(list(result.checks())) == 3
    assert all(value for _, value in result.measurements())


def test_slow_clients_leave_another_client_undisturbed() -> None:
    """Idle connections stay open, slow ones are closed, and the requests of a normal client succeed."""
    with serving(Settings(model="cifar10", header_timeout_s=0.5)) as server:
        idle = run_slow_clients(server.url, os.getpid(), "idle", 20, seconds=0.3)
        slow = run_slow_clients(server.url, os.getpid(), "slow", 20, seconds=1)
    assert (idle.closed, slow.closed) == (0, 20)
    for result, count in ((idle, 6), (slow, 20)):
        assert len(result.alone) == len(result.beside) == count
        assert result.beside.has_status(200).all()
        [succeeds, _, memory, *_] = result.checks()
        assert succeeds.passed
        assert memory.passed


def test_worst_cases_are_sent_and_the_probes_recorded(server: Running, jpeg: bytes) -> None:
    """Each request is sent several times while /healthz is probed."""
    image = WorstCase("image", "/predict", jpeg, "image/*", (200,))
    text = WorstCase("text", "/predict", b"not an image", "image/*", (415,))
    results = worst_case.run_worst_cases(server.url, [image, text])
    assert [(result.request, set(result.statuses), result.failed_probes) for result in results] == [
        (image, {200}, 0),
        (text, {415}, 0),
    ]
    assert all(result.slowest_probe_ms > 0 and result.seconds > 0 for result in results)
    assert len(list(worst_case.measurements(results))) == 2


def test_models_change_under_load(tmp_path: Path) -> None:
    """A model is reloaded, and another one added and unloaded: no request of the others is lost."""
    flags = (*write_repository(tmp_path), "--streams-per-device", "1")
    with run_service(serve_command("auto", None, *flags), tmp_path / "log") as (url, process):
        weights = write_random_weights(tmp_path)
        result = run_models(url, process.pid, tmp_path, weights, rate=2, seconds=2)
    checks = {name: passed for name, passed in results_of(result.checks()).items() if "p99" not in name}
    assert len(checks) == 6
    assert all(checks.values()), [*result.checks(), *result.measurements()]
    assert all(value for _, value in result.measurements())
