"""A local HTTP server for files, in place of the internet."""

import http.server
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Self


class FileServer:
    """A file server on a port of its own.

    Attributes:
        folder: of the files.
        url: of the folder.
        requests: the paths requested so far.
        before_response: called before each response, in the thread of its connection.
        breaks_connections: responses end after half of the file.

    """

    def __init__(self, folder: Path) -> None:
        server = self
        self.folder = folder
        self.requests: list[str] = []
        self.before_response: Callable[[], object] = lambda: None
        self.breaks_connections = False

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                server.before_response()
                super().do_GET()

            def copyfile(self, source: IO[bytes], outputfile: IO[bytes]) -> None:  # type: ignore[override]
                content = source.read()
                outputfile.write(content[: len(content) // 2] if server.breaks_connections else content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(Handler, directory=str(folder))
        )
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
