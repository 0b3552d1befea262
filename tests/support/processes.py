"""`resnet-service serve` as a process of its own."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

COMMAND = [sys.executable, "-m", "resnet_service", "serve"]


Log = Iterator[dict[str, Any]]


Started = tuple["subprocess.Popen[str]", Log, str]
"""The process, the rest of its log, and its URL."""


def environment(**variables: str) -> dict[str, str]:
    others = ("RESNET_SERVICE_", "MALLOC_", "GLIBC_TUNABLES")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return {**clean, **variables}


def events(process: "subprocess.Popen[str]") -> Log:
    """Yield the lines of the process's log as they come; a download's progress bar is among them."""
    assert process.stderr is not None
    for line in process.stderr:
        yield json.loads(line) if line.startswith("{") else {"event": line}


def until(log: Log, name: str) -> dict[str, Any]:
    return next(event for event in log if event["event"] == name)


@contextmanager
def started(
    *flags: str, program: str | None = None, limit: tuple[int, int] | None = None, **variables: str
) -> Iterator[Started]:
    """Start the service, with the bundled model unless told otherwise, and wait until it is ready.

    `program` is Python to run in its place; `limit` is a resource of the process and its most.
    """
    flags = ("--model", "bundled", "--port", "0", "--no-access-log", *flags)  # the last word counts
    command = [*COMMAND, *flags] if program is None else [sys.executable, "-c", program]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**variables),
        preexec_fn=None if limit is None else lambda: resource.setrlimit(limit[0], (limit[1], limit[1])),
    ) as process:
        try:
            log = events(process)
            url = until(log, "serving")["url"]
            until(log, "ready")
            yield process, log, url
        finally:
            process.kill()


def rejected(*flags: str, status: int, **variables: str) -> str:
    """Run the command, which must end by itself with this status, and return what it says."""
    result = subprocess.run(
        [*COMMAND, *flags],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(**variables),
        check=False,
    )
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr
