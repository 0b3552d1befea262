"""Connect to a Ray cluster or start one on this machine, without Ray's log lines on standard error."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from resnet_service.errors import ClusterError

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports usage by default
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray warns about Ray Data's own actors

import ray

_CONNECT_TIMEOUT_S: Final = 5.0
_STDERR: Final = 2


@contextmanager
def ray_cluster(address: str | None = None) -> Iterator[None]:
    """Connect to the Ray cluster at `address` (HOST:PORT), or start one on this machine for the block.

    Raises ClusterError if it cannot be reached.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        _check_reachable(address)
    try:
        with _silent_stderr():
            if address is None:
                ray.init(address="local", include_dashboard=False, **options)
            else:
                ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ClusterError(f"cannot use the Ray cluster: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Check the address first: Ray itself retries for minutes and may then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    try:
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ClusterError(f"cannot connect to a Ray cluster at {address!r} (HOST:PORT): {error}") from error


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard what the process writes to standard error during the block, also outside of Python.

    Ray's C++ library announces the level of RAY_BACKEND_LOG_LEVEL in a line of a lower level when it starts.
    Errors of the start are exceptions, which are not affected.
    """
    sys.stderr.flush()
    stderr = os.dup(_STDERR)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, _STDERR)
        yield
    finally:
        os.dup2(stderr, _STDERR)
        os.close(stderr)
        os.close(null)
