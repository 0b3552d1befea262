"""Configure the memory allocator of the C library."""

import ctypes
import os
from typing import Final

_M_ARENA_MAX: Final = -8
"""From glibc's malloc.h."""


def limit_malloc_arenas() -> None:
    """Make all threads that start later allocate from one heap, unless the environment configures arenas.

    By default glibc uses a heap per thread. Each decoding thread's heap then keeps memory of large images:
    hundreds of MB in total. Growing and shrinking these heaps also blocks other threads: the event loop for
    up to 300 ms, with one heap 40 ms. The service allocates rarely and in large blocks, so threads do not
    contend for the one heap and throughput is the same. Does nothing without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    configured = "MALLOC_ARENA_MAX" in os.environ or "arena_max" in os.environ.get("GLIBC_TUNABLES", "")
    if mallopt is not None and not configured:
        mallopt(_M_ARENA_MAX, 1)
