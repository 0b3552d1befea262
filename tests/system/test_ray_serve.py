"""`serve run resnet_service.integrations.ray_serve:app`: the service as a Ray Serve application on a real, local Ray."""

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from monitoring.local import free_port
from resnet_service.client import APIError, Client, ServiceUnavailableError
from resnet_service.schemas import PredictResponse
from tests.support import REPOSITORY

pytest.importorskip("ray", reason="needs the extra ray")

REQUESTS = 400
REPLICAS = 2


@contextmanager
def serve_run(*arguments: str, folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run the command as documented, on a port of its own, until the block ends: its URL and process."""
    port = free_port()
    configuration = folder / "serve.yml"
    options = "".join(f"    {name}: {value}\n" for name, value in (word.split("=") for word in arguments))
    configuration.write_text(
        f"http_options:\n  host: 127.0.0.1\n  port: {port}\n"
        "applications:\n- name: default\n  route_prefix: /\n  import_path: resnet_service.integrations.ray_serve:app\n"
        f"  args:\n{options}"
    )
    own = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    own |= {"RESNET_SERVICE_LOG_FORMAT": "json", "PYTHONUNBUFFERED": "1", "RAY_ADDRESS": "local"}
    with subprocess.Popen(
        [str(Path(sys.executable).parent / "serve"), "run", str(configuration)],
        cwd=REPOSITORY,
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        patience = threading.Timer(120, process.kill)
        patience.start()
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                warm = sum('"event": "ready"' in line for line in said)
                if warm == REPLICAS and any("route_patterns=[" in line for line in said):
                    break
            else:
                pytest.fail("".join(said))
            patience.cancel()
            # Or it would wait for somebody to read.
            reader = threading.Thread(target=deque, args=(process.stdout, 0))
            reader.start()
            yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
            process.send_signal(signal.SIGINT)
            reader.join(60)
        finally:
            patience.cancel()
            process.kill()


def replicas(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if "ServeReplica" in child.name()]


def test_two_replicas_and_one_that_is_killed(tmp_path: Path, jpeg: bytes) -> None:
    """Under load one replica's process is killed: with one retry each client gets its answer."""
    arguments = ("model=bundled", f"min_replicas={REPLICAS}", "cpus_per_replica=0.5")
    with serve_run(*arguments, folder=tmp_path) as (url, process):
        found = replicas(process)
        assert len(found) == REPLICAS
        with Client(url, attempts=1) as client, ThreadPoolExecutor(8) as pool:

            def ask(number: int) -> PredictResponse:
                if number == REQUESTS // 4:
                    found[0].kill()
                try:
                    return client.predict(jpeg, top_k=1)
                except (APIError, ServiceUnavailableError):  # once more, and no more
                    return client.predict(jpeg, top_k=1)

            answers = list(pool.map(ask, range(REQUESTS)))
            assert len({answer.predictions[0].label for answer in answers}) == 1
            assert client.info()["model"] == "bundled"
        assert httpx.get(f"{url}/readyz").status_code == 200
        assert "inference_images_total" in httpx.get(f"{url}/metrics").text
