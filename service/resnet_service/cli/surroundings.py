"""What a command needs from the system: standard streams, a working folder, memory, files and threads."""

import errno
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import click

_SHORTAGES: Final = {
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN),
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO),
}
"""Of memory, open files and threads; files that cannot be written."""
_MIN_OPEN_FILES: Final = 64
"""A service with one process has 30 open files and uses more for connections and sandbox processes."""
_STREAMS: Final = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def open_closed_streams() -> None:
    """Open standard streams that the parent process has closed as /dev/null.

    Otherwise, the next file or socket would get the number of the stream, and the messages for it.
    """
    for number, (name, mode) in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def require_open_files() -> None:
    """Raise OSError if the system allows too few open files for a service: native libraries would abort."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _MIN_OPEN_FILES:
        raise OSError(errno.EMFILE, "")
    if soft != resource.RLIM_INFINITY and soft < _MIN_OPEN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_MIN_OPEN_FILES, hard))


@contextmanager
def explain_shortages() -> Iterator[None]:
    """Exit with a message of one line and status 1 if the system lacks what the command needs."""
    try:
        Path.cwd()  # native libraries end the process without it
        yield
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        reason = _describe(error)
        if reason is None:
            raise
        with suppress(OSError):
            click.echo(f"resnet-service: {reason}", err=True)
        _discard_output()
        sys.exit(1)


def _describe(error: Exception) -> str | None:
    """Return the reason if an error is about the system; None if it is a fault of the program."""
    text = " ".join(str(error).split())
    match error:
        case MemoryError():
            return f"not enough memory: {text}" if text else "not enough memory"
        case FileNotFoundError() if "temporary directory" in text:
            return f"{error.strerror}; set TMPDIR to a folder that can be written"
        case FileNotFoundError() if error.filename is None:  # of Path.cwd
            return "the working folder does not exist any more"
        case OSError() if error.errno == errno.EMFILE:
            return f"too few open files are allowed (ulimit -n); a service needs {_MIN_OPEN_FILES}"
        case OSError() if error.errno in _SHORTAGES:
            file = "" if error.filename is None else f": {click.format_filename(error.filename)}"
            return f"{os.strerror(error.errno or 0)}{file}"
        case RuntimeError() if "start new thread" in text:
            return "the system allows no more threads, or not enough memory for them"
        case ImportError() if (
            any(os.strerror(number) in text for number in _SHORTAGES) or "map segment" in text
        ):
            return f"not enough memory or open files to load a library: {text}"
    return None


def _discard_output() -> None:
    """Redirect output that cannot be written, because Python would try again at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
