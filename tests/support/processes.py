"""Run `resnet-service serve` as a process and read its log."""

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.commands import run_command

COMMAND = [sys.executable, "-m", "resnet_service", "serve"]

_MAX_S = 300.0
"""Time of a test with a process; most take seconds."""

Log = Iterator[dict[str, Any]]

Started = tuple["subprocess.Popen[str]", Log, str]
"""The process, the remaining events of its log, and its URL."""


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of this process without settings that affect the service, plus `variables`.

    Without a management port: services that run at the same time need different ones. With the model cifar10:
    `auto` depends on the network.
    """
    others = ("RESNET_SERVICE_", "MALLOC_", "GLIBC_TUNABLES")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    defaults = {"RESNET_SERVICE_MANAGEMENT_PORT": "0", "RESNET_SERVICE_MODEL": "cifar10"}
    return {**clean, **defaults, **variables}


def events(process: "subprocess.Popen[str]") -> Log:
    """Yield the events of the log; a line that is not JSON, such as a progress bar, becomes an event."""
    assert process.stderr is not None
    for line in process.stderr:
        yield json.loads(line) if line.startswith("{") else {"event": line}


def until(log: Log, name: str) -> dict[str, Any]:
    """Read the log until the event with this name, and return it."""
    return next(event for event in log if event["event"] == name)


@contextmanager
def started(
    *flags: str,
    program: str | None = None,
    limit: tuple[int, int] | None = None,
    prefix: Sequence[str] = (),
    **variables: str,
) -> Iterator[Started]:
    """Start the service, by default with the model cifar10, and wait until it is ready.

    `program` is Python code to run instead of the command; `limit` is a resource (resource.RLIMIT_...) and
    its limit; `prefix` is a command that runs the service.
    """
    flags = ("--model", "cifar10", "--port", "0", "--no-access-log", *flags)  # the last of equal flags counts
    command = [*COMMAND, *flags] if program is None else [sys.executable, "-c", program]
    with subprocess.Popen(
        [*prefix, *command],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**variables),
        start_new_session=True,  # without a terminal, SIGHUP reloads
        preexec_fn=None if limit is None else lambda: resource.setrlimit(limit[0], (limit[1], limit[1])),
    ) as process:
        killer = threading.Timer(
            _MAX_S, process.kill
        )  # ends the log: `until` would wait for an event for ever
        killer.start()
        try:
            log = events(process)
            url = until(log, "serving")["url"]
            models = flags[-flags[::-1].index("--model")]  # after the last --model
            for _ in models.split(","):  # each of them becomes ready
                until(log, "ready")
            yield process, log, url
        finally:
            killer.cancel()
            process.kill()


def rejected(*flags: str, status: int, **variables: str) -> str:
    """Run `serve`, which must exit with this status without a traceback, and return its output."""
    actual, output = run_command(["serve", *flags], Path.cwd(), environment(**variables), timeout_s=120)
    assert actual == status, output
    assert "Traceback" not in output
    return output
