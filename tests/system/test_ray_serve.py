"""The service as a Ray Serve application, started by `serve run` on a real, local Ray cluster."""

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
_START_TIMEOUT_S = 120


@contextmanager
def serve_run(*arguments: str, folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run `serve run` on a free port with NAME=VALUE arguments; yield the URL and the process."""
    port = free_port()
    configuration = folder / "serve.yml"
    options = "".join(f"    {name}: {value}\n" for name, value in (word.split("=") for word in arguments))
    configuration.write_text(
        f"http_options:\n  host: 127.0.0.1\n  port: {port}\n"
        "applications:\n- name: default\n  route_prefix: /\n"
        f"  import_path: resnet_service.integrations.ray_serve:app\n  args:\n{options}"
    )
    variables = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    variables |= {"RESNET_SERVICE_LOG_FORMAT": "json", "PYTHONUNBUFFERED": "1", "RAY_ADDRESS": "local"}
    with subprocess.Popen(
        [str(Path(sys.executable).parent / "serve"), "run", str(configuration)],
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        start_timer = threading.Timer(_START_TIMEOUT_S, process.kill)
        start_timer.start()
        try:
            output = []
            for line in process.stdout:
                output.append(line)
                ready = sum('"event": "ready"' in line for line in output)
                if ready == REPLICAS and any("route_patterns=[" in line for line in output):
                    break
            else:
                pytest.fail("".join(output))
            start_timer.cancel()
            # Reads the rest of the output, or a full pipe would block the process.
            reader = threading.Thread(target=deque, args=(process.stdout, 0))
            reader.start()
            yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
            process.send_signal(signal.SIGINT)
            reader.join(60)
        finally:
            start_timer.cancel()
            process.kill()


def replicas(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if "ServeReplica" in child.name()]


def test_requests_survive_the_death_of_a_replica(tmp_path: Path, jpeg: bytes) -> None:
    """One of two replicas is killed under load; with one retry, every request gets its response."""
    arguments = ("model=cifar10", f"min_replicas={REPLICAS}", "cpus_per_replica=0.5")
    with serve_run(*arguments, folder=tmp_path) as (url, process):
        processes = replicas(process)
        assert len(processes) == REPLICAS
        with Client(url, attempts=1) as client, ThreadPoolExecutor(8) as pool:

            def predict(number: int) -> PredictResponse:
                if number == REQUESTS // 4:
                    processes[0].kill()
                try:
                    return client.predict(jpeg, top_k=1)
                except (APIError, ServiceUnavailableError):
                    return client.predict(jpeg, top_k=1)  # the only retry

            responses = list(pool.map(predict, range(REQUESTS)))
            assert len({response.predictions[0].label for response in responses}) == 1
            assert client.info().model == "cifar10"
        assert httpx.get(f"{url}/readyz").status_code == 200
        assert "inference_images_total" in httpx.get(f"{url}/metrics").text
