"""wrk, a load generator that costs next to nothing: one image over and over, as fast as answers come."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

import click

_SCRIPT: Final = Path(__file__).parent / "post.lua"
_PATIENCE_S: Final = 90.0
"""For the last answers."""


def require() -> None:
    """Raise ClickException where wrk is not installed."""
    if shutil.which("wrk") is None:
        raise click.ClickException("wrk is not installed: apt-get install wrk")


def load(url: str, image: Path, body: str, connections: int, seconds: int) -> dict[str, float]:
    """Post an image over so many connections, `body` "multipart" or "raw", and return wrk's figures."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", "-s", str(_SCRIPT), url]
    result = subprocess.run(
        [*command, "--", str(image), body],
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds + _PATIENCE_S,
    )
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return figures
