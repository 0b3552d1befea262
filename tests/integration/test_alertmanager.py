"""The configurations of Alertmanager, in a real Alertmanager with a webhook."""

import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any, Final

import httpx
import pytest
import yaml

from monitoring.local import CONFIGURATION, free_port
from tests.support.prometheus import require_program
from tests.support.server import only_once

pytestmark = only_once

FOLDER: Final = CONFIGURATION.parent / "alertmanager"
TIMEOUT_S: Final = 30.0


@contextmanager
def webhook() -> Iterator[tuple[str, "Queue[dict[str, Any]]"]]:
    """Yield the URL of a webhook, and the queue of the messages that it receives."""
    messages: Queue[dict[str, Any]] = Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", messages
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def alertmanager(configuration: Path, folder: Path) -> Iterator[httpx.Client]:
    """Run Alertmanager and yield a client of its API."""
    program = require_program("prometheus-alertmanager")
    address = f"127.0.0.1:{free_port()}"
    options = [
        f"--storage.path={folder / 'data'}",
        "--cluster.listen-address=",
        f"--web.listen-address={address}",
    ]
    with subprocess.Popen(
        [program, f"--config.file={configuration}", *options], stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        assert any(b"msg=Listening" in line or b"Listening on" in line for line in process.stderr)
        reader = threading.Thread(target=process.stderr.read)  # so that its log cannot block it
        reader.start()
        try:
            with httpx.Client(base_url=f"http://{address}") as client:
                yield client
        finally:
            process.kill()
            reader.join()


def post(client: httpx.Client, name: str, severity: str) -> None:
    labels = {"alertname": name, "severity": severity, "instance": "service:8001"}
    client.post("/api/v2/alerts", json=[{"labels": labels}]).raise_for_status()


@pytest.mark.skipif(shutil.which("amtool") is None, reason="needs amtool (Debian's prometheus-alertmanager)")
@pytest.mark.parametrize("name", ["alertmanager.yml", "webhook.example.yml"])
def test_configurations_are_valid(name: str) -> None:
    subprocess.run(["amtool", "check-config", FOLDER / name], check=True, capture_output=True)


def test_the_webhook_gets_critical_alerts_and_no_warning_that_they_cause(tmp_path: Path) -> None:
    """A lost instance is sent; the warning about the same instance is shown, but not sent."""
    with webhook() as (url, messages):
        configuration = yaml.safe_load((FOLDER / "webhook.example.yml").read_text())
        configuration["route"]["group_wait"] = "1ms"
        configuration["receivers"][1]["webhook_configs"][0]["url"] = url
        path = tmp_path / "alertmanager.yml"
        path.write_text(yaml.safe_dump(configuration))
        with alertmanager(path, tmp_path) as client:
            post(client, "InferenceDown", "critical")
            message = messages.get(timeout=TIMEOUT_S)
            assert [alert["labels"]["alertname"] for alert in message["alerts"]] == ["InferenceDown"]
            post(client, "InferenceSlow", "warning")
            [slow] = client.get("/api/v2/alerts", params={"filter": "alertname=InferenceSlow"}).json()
            assert slow["receivers"] == [{"name": "webhook"}]
            post(client, "InferenceNotReady", "critical")
            message = messages.get(timeout=TIMEOUT_S)
            assert [alert["labels"]["alertname"] for alert in message["alerts"]] == ["InferenceNotReady"]


def test_the_default_sends_nothing(tmp_path: Path) -> None:
    """Alerts are listed with a receiver that has no destination."""
    with alertmanager(FOLDER / "alertmanager.yml", tmp_path) as client:
        post(client, "InferenceDown", "critical")
        [alert] = client.get("/api/v2/alerts").json()
    assert alert["receivers"] == [{"name": "page"}]
