"""The service as a process of its own, started for a load test and stopped at its end."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from resnet_service.client import Client


class LoadTestError(Exception):
    """A load test cannot be run, because of its arguments, the service or a missing program."""


@contextmanager
def run_service(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Run a command that serves until the block ends; yields the URL and the process once it is ready.

    `environment` replaces the environment of this process. The service writes its log to a file, because a
    pipe that is not read would block it. Raises LoadTestError if the service ends before it is ready.
    """
    with (
        log.open("wb") as output,
        log.open(encoding="utf-8") as lines,
        subprocess.Popen(command, stderr=output, env=environment) as process,
    ):
        try:
            url = ""
            while process.poll() is None:
                for line in lines:
                    event = json.loads(line) if line.startswith("{") and line.endswith("}\n") else {}
                    url = event.get("url", url)
                    if event.get("event") == "ready":  # a model is: wait for all of them
                        _wait_until_ready(url, process, log)
                        yield url, process
                        return
                time.sleep(0.05)
            raise LoadTestError(f"the service did not start; see {log}")
        finally:
            process.terminate()


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    while httpx.get(f"{url}/readyz").status_code != 200:
        if process.poll() is not None:
            raise LoadTestError(f"the service did not start; see {log}")
        time.sleep(0.05)


def describe_service(url: str) -> str:
    """Return what a running service serves: model, file of its weights, runtime, precision and device."""
    with Client(url) as client:
        info = client.info()
    return f"{info.model} ({info.source}), {info.runtime} {info.precision} on {info.device}"


def write_random_weights(folder: Path) -> Path:
    """Write the state dict of a ResNet-50, unless it exists; random weights take as long as trained ones."""
    import torch  # takes a second, and few load tests need it
    from torchvision.models import resnet50

    path = folder / "resnet50-random.pth"
    if not path.exists():
        torch.manual_seed(0)
        torch.save(resnet50().state_dict(), path)
    return path


def serve_command(model: str, weights: str | None = None, *flags: str) -> list[str]:
    """Return the command that serves a model on a free port."""
    options = ["--model", model, "--port", "0", "--management-port", "0"]
    options += ["--no-access-log", "--log-format", "json"]
    if weights is not None:
        options += ["--weights", weights]
    return [sys.executable, "-m", "resnet_service", "serve", *options, *flags]
