"""What the C library does with memory that is free again."""

import ctypes
import os
from typing import Final

_M_ARENA_MAX: Final = -8
"""glibc's malloc.h."""


def limit_malloc_arenas() -> None:
    """Let all threads that are still to come allocate from one heap, unless the environment says otherwise.

    By default glibc gives each thread a heap of its own, so that the pixels of large images lie around in
    every decoding thread's: hundreds of MB. Growing and shrinking them, it holds up other threads, too: the
    event loop for up to 300 ms, 40 with one heap. Allocations are few and large here, so that no thread
    waits for another's: the throughput is the same. Elsewhere than on glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    wanted = "MALLOC_ARENA_MAX" in os.environ or "arena_max" in os.environ.get("GLIBC_TUNABLES", "")
    if mallopt is not None and not wanted:
        mallopt(_M_ARENA_MAX, 1)
