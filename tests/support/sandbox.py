"""Images that decode slowly, and the processes that decode them."""

import time
from collections.abc import Callable

import psutil
from PIL import Image

from tests.support.images import encode


def slow_image(scans: int) -> bytes:
    """Return a progressive JPEG of 49 megapixels whose last scan is repeated; each takes about 40 ms."""
    encoded = encode(Image.new("RGB", (7000, 7000)), progressive=True)
    scan = encoded[encoded.rindex(b"\xff\xda") : -2]
    return encoded[:-2] + scans * scan + encoded[-2:]


def sandbox_processes(parent: int | None = None) -> list[psutil.Process]:
    """Return the processes of the sandboxes of `parent` and its children, by default this process."""
    return [child for child in psutil.Process(parent).children(recursive=True) if _is_sandbox(child)]


def _is_sandbox(process: psutil.Process) -> bool:
    try:
        return any("sandbox_process" in word for word in process.cmdline())
    except psutil.Error:  # it has ended
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    """Check the condition until it holds, at most 30 seconds."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true within 30 s"
