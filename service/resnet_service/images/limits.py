"""Limits on what one image may cost: pixels, memory and time."""

import resource
import sys
from pathlib import Path
from typing import Final

from resnet_service.errors import PayloadTooLarge

DEFAULT_MAX_PIXELS: Final = 50_000_000
DEFAULT_MEMORY_BYTES: Final = 1_000_000_000
"""Of a sandbox process. An animated WebP of 50 megapixels with transparency needs most: 900 MB."""
DEFAULT_TIMEOUT_S: Final = 10.0
"""To decode an image in the sandbox. A PNG of 50 megapixels takes 2 s."""

_STATM_DATA: Final = 5
"""The field of /proc/self/statm that RLIMIT_DATA limits, in memory pages. Source: proc_pid_statm(5)."""


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise PayloadTooLarge if the image has more than `max_pixels` pixels."""
    if width * height > max_pixels:
        raise PayloadTooLarge(f"the image has {width} x {height} pixels; the limit is {max_pixels:,} pixels")


def limit_memory(memory_bytes: int) -> None:
    """Limit the memory that this process may allocate from now on.

    An allocation over the limit fails with MemoryError in Python and returns null in C. macOS has no limit
    on memory that it enforces; there the limits on pixels and time remain.
    """
    if sys.platform == "linux":
        data_pages = int(Path("/proc/self/statm").read_text("ascii").split()[_STATM_DATA])
        limit = data_pages * resource.getpagesize() + memory_bytes
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
