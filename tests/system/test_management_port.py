"""The management port of `resnet-service serve`: nothing on the main port delays it."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from monitoring.local import free_port
from tests.support.models import write_checkpoint
from tests.support.processes import Started, environment, rejected, started, until

BLOCKED_EVENT_LOOP = """
import sys
import threading
from resnet_service.log_config import configure_logging
from resnet_service.server.run import run_server
from resnet_service.server.state import build_app_state
from resnet_service.settings import Settings

configure_logging(style="json")
state = build_app_state(Settings(model="cifar10", port=0, stall_timeout_s=3))

async def block_event_loop(*_):
    threading.Event().wait()

state.backend.models.find().classify = block_event_loop
sys.exit(run_server(state))
"""

FAILING_MANAGEMENT_PORT = """
import sys
from resnet_service.log_config import configure_logging
from resnet_service.server import run
from resnet_service.server.state import build_app_state
from resnet_service.settings import Settings

configure_logging(style="json")
run.create_management_app = lambda _: "missing:app"  # uvicorn cannot import it
sys.exit(run.run_server(build_app_state(Settings(model="cifar10", port=0))))
"""


@contextmanager
def managed(*flags: str, program: str | None = None) -> Iterator[tuple[Started, httpx.Client]]:
    """Start the service with a management port; yields the process and a client for that port."""
    port = str(free_port())
    with (
        started(*flags, program=program, RESNET_SERVICE_MANAGEMENT_PORT=port) as service,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        yield service, client


def test_management_port_serves_probes_and_metrics_only(jpeg: bytes) -> None:
    """Its metrics are those of the main port; inference and the API page are not there."""
    with managed() as ((_, _, url), client):
        assert httpx.post(f"{url}/predict", files={"file": jpeg}).status_code == 200
        for path in ("/healthz", "/readyz", "/metrics"):
            assert client.get(path).status_code == 200
        assert (
            'inference_images_total{model="cifar10",outcome="ok",version="1"} 1.0'
            in client.get("/metrics").text
        )
        for path in ("/predict", "/docs", "/openapi.json", "/info", "/bench"):
            response = client.get(path)
            assert response.status_code == 404
            assert response.headers["content-type"] == "application/problem+json"


def test_reload_on_the_management_port_replaces_the_model(tmp_path: Path, jpeg: bytes) -> None:
    """It needs a key with the scope admin, and the metrics need a key as well; the probes do not."""
    model = tmp_path / "model.safetensors"
    write_checkpoint(model)
    keys = tmp_path / "keys"
    keys.write_text("the-client-api-key predict\nthe-admin-api-key admin metrics\n")
    with managed("--model", str(model), "--api-keys-file", str(keys)) as ((_, _, url), client):

        def label() -> str:
            headers = {"X-API-Key": "the-client-api-key"}
            response = httpx.post(f"{url}/predict", files={"file": jpeg}, headers=headers)
            return str(response.json()["predictions"][0]["label"])

        before = label()
        write_checkpoint(model, label_prefix="new-")
        assert client.get("/healthz").status_code == 200
        assert client.get("/metrics").status_code == 401
        assert client.post("/reload", headers={"X-API-Key": "the-client-api-key"}).status_code == 403
        admin = {"X-API-Key": "the-admin-api-key"}
        assert client.get("/metrics", headers=admin).status_code == 200
        assert client.post("/reload", headers=admin).status_code == 200
        assert label() == f"new-{before}"
        model.write_bytes(b"not a model")
        response = client.post("/reload", headers=admin)
        assert response.status_code == 500
        assert "nothing has changed" in response.json()["detail"]
        assert label() == f"new-{before}"


def test_blocked_event_loop_fails_liveness_on_the_management_port_only_after_the_stall_timeout(
    jpeg: bytes,
) -> None:
    """Before it, the probe succeeds though the main port does not respond; afterwards, the process ends."""
    with managed(program=BLOCKED_EVENT_LOOP) as ((process, _, url), client), ThreadPoolExecutor(1) as pool:
        request = pool.submit(httpx.post, f"{url}/predict", files={"file": jpeg}, timeout=60)
        statuses = []
        while True:
            try:
                statuses.append(client.get("/healthz").status_code)
            except httpx.TransportError:
                break
        assert set(statuses) == {200, 503}
        assert statuses == sorted(statuses)
        assert process.wait(30) == 1
        assert isinstance(request.exception(), httpx.TransportError)


def test_drain_fails_readiness_on_the_management_port_until_the_process_ends(jpeg: bytes) -> None:
    """While a request of the main port is being finished, liveness succeeds."""
    with managed() as ((process, log, url), client):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = (
                "POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\n"
                f"Content-Length: {len(jpeg)}\r\n\r\n"
            )
            connection.sendall(head.encode() + jpeg[:-1])
            while "inference_upload_bytes 0.0" in client.get("/metrics").text:
                pass  # until the service reads the body
            process.send_signal(signal.SIGTERM)
            until(log, "draining")
            assert client.get("/readyz").status_code == 503
            assert client.get("/healthz").status_code == 200
            connection.sendall(jpeg[-1:])
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert process.wait(30) == 0
        with pytest.raises(httpx.TransportError):
            client.get("/healthz")


def test_failure_of_the_management_port_ends_the_process_with_status_1() -> None:
    """A supervisor restarts the process, which would otherwise look dead to its probes."""
    result = subprocess.run(
        [sys.executable, "-c", FAILING_MANAGEMENT_PORT],
        env=environment(RESNET_SERVICE_MANAGEMENT_PORT=str(free_port())),
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    assert "management_port_failed" in result.stderr


def test_management_port_in_use_exits_with_status_1() -> None:
    """The message names the setting, whether another program uses the port or the service itself."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        message = rejected("--port", "0", "--management-port", port, status=1)
    assert f"127.0.0.1:{port}: the address is already in use" in message
    assert "--management-port 0" in message
    port = str(free_port())
    assert "--management-port 0" in rejected("--port", port, "--management-port", port, status=1)
