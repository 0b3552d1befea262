"""Download a file over HTTP(S): complete or not at all, with a progress bar and timeouts.

Does not know what the files are.
"""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import pooch

if TYPE_CHECKING:
    from requests import Response

CONNECT_TIMEOUT_S: Final = 5.0
"""For `check_reachable`, where the program can go on without the file."""

_TIMEOUT_S: Final = 30.0
_CHUNK_BYTES: Final = 1 << 20

DOWNLOAD_ERRORS: Final = (OSError, ValueError)
"""What `download` raises: the exceptions of requests are OSErrors, and pooch raises ValueError for a hash."""

pooch.get_logger().setLevel(logging.WARNING)  # it advises developers about hashes, by a handler of its own


def is_url(source: str) -> bool:
    """Return whether `source` is an http(s) URL; otherwise it is a path."""
    return source.lower().startswith(("http://", "https://"))


def download(
    url: str,
    path: Path,
    *,
    known_hash: str | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Download `url` to `path`, unless a file with the right hash is there.

    The file is written under a temporary name in the same folder and renamed when it is complete and correct,
    so several processes may download the same file.

    Args:
        url: an http(s) URL.
        path: of the file; its folder is created.
        known_hash: of the whole file, such as "md5:..." or a SHA-256. Without one, an existing file is kept.
        check: called with the complete temporary file; what it raises ends the download.

    Raises:
        OSError, ValueError: the connection failed, it sent no data for 30 s, the status is an error, the file
            cannot be written, or the hash differs.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:

        def close_at_exit(response: "Response", **_: object) -> None:
            stack.callback(response.close)  # pooch leaves the connection of a response with an error open

        fetch = pooch.HTTPDownloader(
            progressbar=True, chunk_size=_CHUNK_BYTES, timeout=_TIMEOUT_S, hooks={"response": close_at_exit}
        )

        def fetch_and_check(url: str, temporary: str, _: object) -> None:
            Path(temporary).unlink()  # only its owner could read it; a new file gets the mode of the umask
            fetch(url, temporary, None)
            if check is not None:
                check(Path(temporary))

        pooch.retrieve(url, known_hash, path.name, path.parent, downloader=fetch_and_check)


def check_reachable(url: str, timeout_s: float) -> None:
    """Ask the server of `url` whether it has the file, without downloading it.

    Unlike that of `download`, the timeout includes the resolution of the server's name, which alone can take
    a minute in a network without internet access.

    Raises:
        OSError, ValueError: the server did not respond within `timeout_s`, or does not have the file; the
            message names the server.

    """
    import requests  # as pooch does, when it is needed: 60 ms

    outcome: SimpleQueue[OSError | ValueError | None] = SimpleQueue()

    def ask() -> None:
        try:
            with requests.head(url, timeout=timeout_s, allow_redirects=True) as response:
                response.raise_for_status()
        except DOWNLOAD_ERRORS as error:
            outcome.put(error)
        else:
            outcome.put(None)

    Thread(target=ask, name="check-reachable", daemon=True).start()  # nothing can end a call of the resolver
    server = urlsplit(url).netloc
    try:
        error = outcome.get(timeout=timeout_s)
    except Empty:
        raise TimeoutError(f"{server} did not respond within {timeout_s:g} s") from None
    if isinstance(error, requests.Timeout):
        raise TimeoutError(f"{server} did not respond within {timeout_s:g} s") from error
    if isinstance(error, requests.ConnectionError):
        raise ConnectionError(f"{server} could not be reached") from error
    if error is not None:
        raise error
