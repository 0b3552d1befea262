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
    """Return the processes of the sandboxes of `parent`, by default this process."""
    children = psutil.Process(parent).children()
    return [child for child in children if any("sandbox_process" in word for word in child.cmdline())]


def wait_for(condition: Callable[[], bool]) -> None:
    """Check the condition until it holds, at most 30 seconds."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true within 30 s"
