"""What SIGTERM, SIGINT and SIGHUP do: before the service can accept a request, and afterwards.

Imports no other module of the package, because the command calls it before the imports that take seconds.
"""

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Final

__all__ = ["end_at_signals", "handle_signals"]

_END: Final = (signal.SIGTERM, signal.SIGINT)


def end_at_signals() -> None:
    """Let SIGTERM and Ctrl-C end the process at once; call this first, and `handle_signals` when it serves.

    The operating system ends it. An exception raised in a handler could be caught: by imports, by native code
    that calls Python, and by `except` clauses of libraries. A handler would also wait for native calls.

    SIGHUP waits for `handle_signals`, unless the process has a terminal, which sends it when it is closed.
    """
    for number in _END:
        # The kernel does not end process 1, of a container without an init process, by a default action.
        signal.signal(number, _exit if os.getpid() == 1 else signal.SIG_DFL)
    if not _has_terminal():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def handle_signals(
    handle_exit: Callable[[int, FrameType | None], None],
    request_exit: Callable[[], None],
    request_reload: Callable[[], None],
) -> None:
    """Call `handle_exit` at SIGTERM and Ctrl-C, and `request_reload` at SIGHUP.

    With a terminal, SIGHUP means that it was closed: `request_exit` is called, or nothing under nohup. The
    shell and the kernel can both send it, so that a second one means no more than the first.
    """
    for number in _END:
        signal.signal(number, handle_exit)
    if not _has_terminal():
        signal.signal(signal.SIGHUP, lambda *_: request_reload())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: request_exit())


def _has_terminal() -> bool:
    """Whether the process has a controlling terminal."""
    try:
        os.close(os.open(os.ctermid(), os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _exit(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)  # the status that shells give a process that a signal has ended
