"""Faults around a service process: a hung device, a blocked event loop, full disks, clock jumps, signals."""

import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from monitoring.local import free_port
from tests.support.file_server import FileServer
from tests.support.http import connected
from tests.support.processes import COMMAND, environment, events, started, until

SERVE_WITH_FAULT = """
import sys
import threading
from resnet_service.log_config import configure_logging
from resnet_service.server.run import run_server
from resnet_service.server.state import build_app_state
from resnet_service.settings import Settings

configure_logging(style="json")
state = build_app_state(
    Settings(model="cifar10", port=0, streams_per_device=1, access_log=False, {settings})
)
{fault}
sys.exit(run_server(state))
"""
HUNG_DEVICE = """
[runtime] = state.backend.engines.current.runtimes
run = runtime.run
runtime.run = lambda crops, k: threading.Event().wait() if k > 1 else run(crops, k)  # 1: the warm-up
"""
HUNG_WARM_UP = """
[runtime] = state.backend.engines.current.runtimes
runtime.run = lambda crops, k: threading.Event().wait()
"""
BLOCKED_EVENT_LOOP = """
async def block_event_loop(*_):
    threading.Event().wait()
state.backend.models.find().classify = block_event_loop
"""


def test_hung_device_returns_504_and_ends_the_process(jpeg: bytes) -> None:
    """If a batch never ends, its request gets 504, /healthz fails, and the process exits with status 1."""
    program = SERVE_WITH_FAULT.format(
        settings="drain_timeout_s=4, request_timeout_s=1, stall_timeout_s=1.5", fault=HUNG_DEVICE
    )
    with started(program=program) as (process, log, url), httpx.Client(base_url=url, timeout=60) as client:
        assert client.post("/predict", files={"file": jpeg}).status_code == 504
        while (health := client.get("/healthz")).status_code == 200:
            pass
        assert health.status_code == 503
        assert health.json()["detail"]
        until(log, "engine_stuck")
        assert process.wait(30) == 1


def test_signal_during_a_long_warm_up_is_no_failure() -> None:
    """SIGTERM ends a start whose warm-up still runs on the device, with status 0."""
    program = SERVE_WITH_FAULT.format(settings="drain_timeout_s=4", fault=HUNG_WARM_UP)
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        try:
            log = events(process)
            until(log, "serving")
            process.terminate()
            until(log, "stopped")
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_blocked_event_loop_ends_the_process_with_stack_traces(jpeg: bytes) -> None:
    """If the event loop is blocked, the process exits with status 1 and prints the stacks of all threads."""
    program = SERVE_WITH_FAULT.format(settings="stall_timeout_s=1", fault=BLOCKED_EVENT_LOOP)
    with started(program=program) as (process, log, url):
        with pytest.raises(httpx.HTTPError):
            httpx.post(f"{url}/predict", files={"file": jpeg}, timeout=60)
        assert process.wait(30) == 1
        output = "".join(str(event["event"]) for event in log)
    assert "event_loop_blocked" in output
    assert "block_event_loop" in output


def wait_until_ready(client: httpx.Client, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        with pytest.raises(subprocess.TimeoutExpired):  # or the process has ended
            process.wait(0.05)
    raise AssertionError("the service did not become ready within 60 s")


def test_full_disk_for_the_log_fails_no_request(jpeg: bytes) -> None:
    """If the log cannot be written, requests still succeed and SIGTERM still stops the service."""
    url = f"http://127.0.0.1:{free_port()}"  # chosen here, because the log cannot report it
    command = [*COMMAND, "--model", "cifar10", "--port", url.rpartition(":")[2]]
    with (
        Path("/dev/full").open("w") as full,
        subprocess.Popen(command, stderr=full, env=environment()) as process,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        try:
            wait_until_ready(client, process)
            for _ in range(20):
                assert client.post("/predict", files={"file": jpeg}).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("fault", ["full disk", "no permission"])
def test_service_starts_without_a_writable_cache(fault: str, jpeg: bytes, tmp_path: Path) -> None:
    """If compiled models cannot be cached, the service starts and classifies all the same."""
    is_full = fault == "full disk"
    cache = str(tmp_path) if is_full else "/proc/none"  # where not even root can create a folder
    limit = (resource.RLIMIT_FSIZE, 0) if is_full else None
    with started(limit=limit, program=None, XDG_CACHE_HOME=cache) as (_, _, url):
        assert httpx.post(f"{url}/predict", files={"file": jpeg}).status_code == 200


def test_full_disk_during_a_download_stops_the_start(file_server: FileServer, tmp_path: Path) -> None:
    """If weights cannot be stored, the start fails with the reason and leaves no partial file."""
    (file_server.folder / "weights.pth").write_bytes(bytes(100_000))
    cache = tmp_path / "cache"
    command = [*COMMAND, "--model", "resnet18", "--weights", f"{file_server.url}/weights.pth"]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment(TORCH_HOME=str(cache), XDG_CACHE_HOME=str(cache)),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
        timeout=120,
        check=False,
    )
    assert result.returncode == 3, result.stderr
    assert "too large" in result.stderr
    assert "Traceback" not in result.stderr
    assert not [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size]


def test_clock_jumps_do_not_affect_requests(jpeg: bytes, tmp_path: Path) -> None:
    """Deadlines, queues and timeouts do not depend on the time of day: a day ahead, a year back."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("needs libfaketime")
    clock = tmp_path / "clock"
    clock.write_text("+0")
    variables: dict[str, Any] = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with (
        started("--request-timeout-s", "20", **variables) as (_, _, url),
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        for offset in ("+0", "+1d", "-1y", "+0"):
            clock.write_text(offset)
            response = client.post("/predict", files={"file": jpeg})
            assert response.status_code == 200
            assert 0 < response.json()["timing_ms"]["total"] < 20_000
            with ThreadPoolExecutor(8) as pool:
                responses = [pool.submit(client.post, "/predict", files={"file": jpeg}) for _ in range(40)]
            assert {each.result().status_code for each in responses} == {200}
        assert client.get("/readyz").status_code == 200


def test_second_signal_ends_the_process_immediately(jpeg: bytes) -> None:
    """A second SIGTERM ends the drain, which would otherwise wait for a hung device."""
    program = SERVE_WITH_FAULT.format(
        settings="drain_timeout_s=1000, request_timeout_s=1000", fault=HUNG_DEVICE
    )
    with started(program=program) as (process, log, url), ThreadPoolExecutor(1) as pool:
        request = pool.submit(httpx.post, f"{url}/predict", files={"file": jpeg}, timeout=60)
        while "inference_in_flight 1.0" not in httpx.get(f"{url}/metrics").text:
            pass
        process.send_signal(signal.SIGTERM)
        until(log, "draining")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 1
        assert isinstance(request.exception(), httpx.HTTPError)


def test_killed_service_restarts_on_the_same_port(jpeg: bytes) -> None:
    """After SIGKILL under load, a new process can listen on the same port."""
    with started() as (process, _, url), ThreadPoolExecutor(4) as pool:
        requests = [
            pool.submit(httpx.post, f"{url}/predict", files={"file": jpeg}, timeout=30) for _ in range(40)
        ]
        assert requests[0].result().status_code == 200
        process.kill()
        process.wait()
    with started("--port", url.rpartition(":")[2]) as (_, _, new_url):
        assert new_url == url
        assert httpx.post(f"{url}/predict", files={"file": jpeg}).status_code == 200


def test_low_file_limit_closes_idle_connections_for_new_ones(jpeg: bytes) -> None:
    """If the system allows few open files, idle connections are closed and new ones are accepted."""
    with started(limit=(resource.RLIMIT_NOFILE, 600)) as (_, _, url), ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connected(url))
        assert httpx.post(f"{url}/predict", files={"file": jpeg}).status_code == 200
