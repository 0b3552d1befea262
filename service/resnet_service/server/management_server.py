"""The management port: probes, metrics and reload, served in a thread of its own.

However many clients and bytes wait on the main port, this thread's event loop does not have to serve them.
"""

import socket
import threading
from collections.abc import Sequence
from typing import Final

import uvicorn

from resnet_service.machine import schedule_this_thread
from resnet_service.server.listener import allow_rebinding

_STOP_TIMEOUT_S: Final = 3.0


class ManagementServer:
    """Serves an application on bound sockets, in a thread, from `start` to `stop`."""

    def __init__(self, config: uvicorn.Config, sockets: Sequence[socket.socket]) -> None:
        self._server = uvicorn.Server(config)
        self._sockets = list(sockets)
        # A daemon: a request that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._serve, name="management", daemon=True)

    @property
    def has_ended(self) -> bool:
        """Whether the thread, which `start` has started, has ended; its error is in the log."""
        return not self._thread.is_alive()

    def start(self) -> None:
        """Listen, and start the thread."""
        allow_rebinding(self._sockets)
        self._thread.start()

    def stop(self) -> None:
        """Close all connections, at the latest after three seconds, and end the thread."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(_STOP_TIMEOUT_S)

    def _serve(self) -> None:
        schedule_this_thread(for_throughput=False)  # a probe interrupts the threads of requests
        self._server.run(self._sockets)
