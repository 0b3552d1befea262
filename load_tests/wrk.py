"""Run wrk, a load generator in C that uses almost no CPU time: closed loop, one image over and over."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Final, Literal

from load_tests.service import LoadTestError

BodyFormat = Literal["multipart", "raw"]

_SCRIPT: Final = Path(__file__).parent / "post.lua"
_GRACE_S: Final = 90.0
"""Time for the last responses."""


def require_wrk() -> None:
    """Raise LoadTestError if wrk is not installed."""
    if shutil.which("wrk") is None:
        raise LoadTestError("wrk is not installed; install Debian's package wrk")


def run_wrk(
    url: str, image: Path, body_format: BodyFormat, connections: int, seconds: int, *, threads: int = 1
) -> dict[str, float]:
    """Post an image over these connections and return rate, p50_ms, p99_ms, rejected and failed.

    One thread of wrk sends tens of thousands of requests per second.
    """
    command = [
        "wrk",
        f"-t{min(threads, connections)}",
        f"-c{connections}",
        f"-d{seconds}s",
        "--timeout",
        "60s",
        "-s",
        str(_SCRIPT),
        url,
    ]
    result = subprocess.run(
        [*command, "--", str(image), body_format],
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds + _GRACE_S,
    )
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return figures
