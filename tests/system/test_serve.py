"""`resnet-service serve` as a process: memory, downloads, signals, the drain, and a reload by SIGHUP."""

import platform
import signal
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
import torch
from torchvision.models import resnet18

from tests.support.file_server import FileServer
from tests.support.models import write_checkpoint
from tests.support.processes import started, until


def count_thread_heaps(process: "subprocess.Popen[str]") -> int:
    """Count the heaps that glibc has created for single threads.

    Each occupies an aligned range of 64 MiB: a part that is in use, and a rest that is only reserved.
    """
    ranges = []
    for line in Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8").splitlines():
        addresses, mode = line.split()[:2]
        begin, end = (int(address, 16) for address in addresses.split("-"))
        ranges.append((begin, end, mode))
    size = 64 * 2**20
    return sum(
        mode == "rw-p"
        and next_mode == "---p"
        and begin % size == 0
        and end == next_begin
        and next_end - begin == size
        for (begin, end, mode), (next_begin, next_end, next_mode) in pairwise(ranges)
    )


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has one heap per thread")
@pytest.mark.parametrize("variables", [{}, {"MALLOC_ARENA_MAX": "99"}], ids=["default", "MALLOC_ARENA_MAX"])
def test_threads_share_one_heap_by_default(variables: dict[str, str], jpeg: bytes) -> None:
    """Memory that one thread frees can be used by another, unless the operator sets MALLOC_ARENA_MAX."""
    with started(program=None, limit=None, **variables) as (process, _, url):
        for _ in range(4):
            httpx.post(f"{url}/predict", files={"file": jpeg}).raise_for_status()
        assert (count_thread_heaps(process) > 0) == bool(variables)


def test_weights_are_downloaded_and_served(file_server: FileServer, tmp_path: Path, jpeg: bytes) -> None:
    """Weights of a URL are downloaded to torch's cache, and predictions have the published labels."""
    torch.save(resnet18().state_dict(), file_server.folder / "net.pth")
    flags = ("--model", "resnet18", "--weights", f"{file_server.url}/net.pth")
    with started(*flags, TORCH_HOME=str(tmp_path / "cache")) as (_, _, url):
        body = httpx.post(f"{url}/predict?top_k=1000", files={"file": jpeg}).json()
    assert body["model"] == "resnet18"
    assert "golden retriever" in {prediction["label"] for prediction in body["predictions"]}
    assert file_server.requests == ["/net.pth"]
    assert list((tmp_path / "cache").rglob("net.pth"))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_sigterm_under_load_loses_no_request(jpeg: bytes, workers: str) -> None:
    """After SIGTERM, requests already sent get a response, later ones cannot connect, and the status is 0."""
    with started("--workers", workers) as (process, log, url):
        statuses: Counter[int] = Counter()

        def send_requests() -> None:
            with httpx.Client(base_url=url, timeout=30) as session:
                while True:
                    try:
                        response = session.post("/predict", files={"file": jpeg})
                    except httpx.ConnectError:
                        return  # the server does not listen any more, so it has accepted nothing
                    statuses[response.status_code] += 1
                    if statuses.total() == 1000:
                        process.send_signal(signal.SIGTERM)

        with ThreadPoolExecutor(16) as pool:
            for client in [pool.submit(send_requests) for _ in range(16)]:
                client.result()  # raises all errors except the failure to connect
        assert process.wait(30) == 0
        assert set(statuses) == {200}
        assert statuses.total() >= 1000
        assert until(log, "stopped")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_an_idle_service_with_status_0(number: signal.Signals) -> None:
    """SIGTERM and Ctrl-C stop a service with an idle connection."""
    with started() as (process, _, url), httpx.Client(base_url=url) as client:
        assert client.get("/healthz").status_code == 200
        process.send_signal(number)
        assert process.wait(30) == 0


SERVE_WITH_FAULTY_DEVICE = """
import sys
import threading
from resnet_service.errors import DeviceError
from resnet_service.log_config import configure_logging
from resnet_service.server.run import run_server
from resnet_service.server.state import build_app_state
from resnet_service.settings import Settings

configure_logging(style="json")
state = build_app_state(Settings(model="cifar10", port=0, drain_timeout_s=4, streams_per_device=1))
[runtime] = state.backend.engines.current.runtimes
run = runtime.run

def run_until_warm(crops, k):
    if k > 1:  # an image, not the warm-up
        {fault}
    return run(crops, k)

runtime.run = run_until_warm
sys.exit(run_server(state))
"""


def test_drain_finishes_the_requests_that_are_not_read_yet(jpeg: bytes) -> None:
    """SIGTERM while most of 40 requests wait for the one that runs: all of them get their predictions."""
    body = jpeg + bytes(100_000)
    with started("--max-concurrency", "1") as (process, _, url), ExitStack() as stack:
        connections = [HTTPConnection(url.removeprefix("http://"), timeout=60) for _ in range(40)]
        for connection in connections:
            stack.callback(connection.close)
            connection.request("POST", "/predict", body, {"Content-Type": "image/jpeg"})
        httpx.get(f"{url}/healthz")  # connections are accepted in order
        process.send_signal(signal.SIGTERM)
        assert [connection.getresponse().status for connection in connections] == [200] * 40
        assert process.wait(30) == 0


STUCK_LOAD = """
import sys
import threading
from resnet_service.log_config import configure_logging
from resnet_service.server.run import run_server
from resnet_service.server.state import build_app_state
from resnet_service.settings import Settings

def load(version):
    print("loading", file=sys.stderr)
    threading.Event().wait()

configure_logging(style="json")
state = build_app_state(Settings(model="cifar10", port=0, drain_timeout_s=4))
state.backend.engines.load_engine = load
sys.exit(run_server(state))
"""
STUCK_DEVICE = SERVE_WITH_FAULTY_DEVICE.format(fault="threading.Event().wait()")
LOST_DEVICE = SERVE_WITH_FAULTY_DEVICE.format(fault='raise DeviceError("the device is lost")')


def test_stuck_batch_does_not_prevent_the_shutdown(jpeg: bytes) -> None:
    """If a batch never ends, its request gets 503 after SIGTERM, and the process exits with status 1."""
    with started(program=STUCK_DEVICE) as (process, _, url), ThreadPoolExecutor(1) as pool:
        future = pool.submit(httpx.post, f"{url}/predict", files={"file": jpeg}, timeout=60)
        idle_queue = 'inference_queue_depth{model="cifar10",priority="interactive",version="1"} 0.0'
        while idle_queue not in (text := httpx.get(f"{url}/metrics").text) or (
            "inference_in_flight 1.0" not in text
        ):
            pass  # until the image is on the device
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 1
        response = future.result()
        assert response.status_code == 503
        assert response.headers["content-type"] == "application/problem+json"


def test_model_that_never_loads_does_not_prevent_the_shutdown() -> None:
    """SIGTERM during a reload whose load never returns ends the process with status 1."""
    with started(program=STUCK_LOAD) as (process, log, _):
        process.send_signal(signal.SIGHUP)
        until(log, "loading\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 1


def test_failed_device_stops_the_service_with_status_1(jpeg: bytes) -> None:
    """After an error that only a new process recovers, the request gets 500 or 503 and the process exits."""
    with started(program=LOST_DEVICE) as (process, log, url):
        assert httpx.post(f"{url}/predict", files={"file": jpeg}).status_code in (500, 503)
        until(log, "engine_failed")
        assert process.wait(30) == 1


def test_sighup_reloads_the_model_and_the_keys(tmp_path: Path, jpeg: bytes) -> None:
    """SIGHUP loads model and API keys again; if one is invalid, both stay, and the reason is logged."""
    model, keys = tmp_path / "model.safetensors", tmp_path / "keys"
    write_checkpoint(model)
    keys.write_text("the-first-api-key\n")
    with started("--model", str(model), "--api-keys-file", str(keys)) as (process, log, url):

        def predict(key: str) -> httpx.Response:
            return httpx.post(f"{url}/predict", files={"file": jpeg}, headers={"X-API-Key": key})

        label = predict("the-first-api-key").json()["predictions"][0]["label"]
        write_checkpoint(model, label_prefix="new-")
        keys.write_text("the-second-api-key\n")
        process.send_signal(signal.SIGHUP)
        until(log, "reloaded")
        assert predict("the-first-api-key").status_code == 401
        assert predict("the-second-api-key").json()["predictions"][0]["label"] == f"new-{label}"
        keys.write_text("short\n")
        process.send_signal(signal.SIGHUP)
        assert "fewer than 16" in until(log, "reload_failed")["reason"]
        assert predict("the-second-api-key").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
