"""Run h2load, a load generator in C for HTTP/1.1 and HTTP/2: closed loop, one body over and over.

As gRPC is a body in a frame over HTTP/2, the same program sends requests to both ports, and its CPU time is
nearly the same.
"""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from load_tests.service import LoadTestError


def require_h2load() -> None:
    """Raise LoadTestError if h2load is not installed."""
    if shutil.which("h2load") is None:
        raise LoadTestError("h2load is not installed; install Debian's package nghttp2-client")


@contextmanager
def posting(
    url: str,
    body: Path,
    headers: Mapping[str, str],
    *,
    connections: int,
    calls: int = 1,
    http2: bool = False,
    seconds: int = 3600,
) -> Iterator[psutil.Process]:
    """Post the content of a file until the block ends, at most for `seconds`; yields h2load's process.

    Each connection has `calls` requests in progress, more than one only with HTTP/2, which is spoken without
    an upgrade and without TLS. Raises LoadTestError if h2load ends before the block does.
    """
    command = ["h2load", f"-D{seconds}", f"-c{connections}", f"-m{calls}", "-t1", f"-d{body}"]
    command += ["-ph2c"] if http2 else ["--h1"]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    with subprocess.Popen([*command, url], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            yield psutil.Process(process.pid)
            if process.poll() is not None:
                output = process.communicate()[0].decode(errors="replace")
                raise LoadTestError(f"h2load ended with status {process.returncode}: {output[-500:]}")
        finally:
            process.kill()  # there is nothing to finish: the measurement is over
