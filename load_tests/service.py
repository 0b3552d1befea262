"""A service of one's own to load: a process, from its start to its end."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


class ServiceFailed(Exception):
    """The service ended before it was ready."""


@contextmanager
def started(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Run a command that serves, until the block ends; yields the URL, once it is ready, and the process.

    `environment` replaces this process's own. Its log goes to a file, since a pipe that nobody reads would
    stop it. Raises ServiceFailed.
    """
    with (
        log.open("wb") as written,
        log.open(encoding="utf-8") as read,
        subprocess.Popen(command, stderr=written, env=environment) as process,
    ):
        try:
            url = ""
            while process.poll() is None:
                for line in read:
                    event = json.loads(line) if line.startswith("{") and line.endswith("}\n") else {}
                    url = event.get("url", url)
                    if event.get("event") == "ready":
                        yield url, process
                        return
                time.sleep(0.05)
            raise ServiceFailed(f"the service did not start; see {log}")
        finally:
            process.terminate()


def serve(model: str, weights: str | None = None) -> list[str]:
    """Return the command that serves a model, with the weights given, on a free port."""
    options = ["--model", model, "--port", "0", "--no-access-log", "--log-format", "json"]
    if weights is not None:
        options += ["--weights", weights]
    return [sys.executable, "-m", "resnet_service", "serve", *options]
