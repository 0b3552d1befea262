"""A network namespace behind a link with latency and loss, which a thread forwards packet by packet.

`tc netem` does the same in kernels that have it, which many do not.
"""

import fcntl
import heapq
import os
import random
import selectors
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

SERVER_ADDRESS: Final = "198.18.77.2"
"""Of the range for tests of networks, RFC 2544."""
_CLIENT_ADDRESS: Final = "198.18.77.1"
_DEVICE: Final = Path("/dev/net/tun")
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x1001
_MTU: Final = 1500


class LossyLink:
    """A link to SERVER_ADDRESS in the network namespace `namespace`.

    latency_s: the time that each packet takes in each direction.
    loss: the share of the packets that are lost, 0 to 1.
    """

    def __init__(self, namespace: str, ends: tuple[int, int]) -> None:
        """`ends` are the file descriptors of two TUN devices."""
        self.namespace = namespace
        self.latency_s = self.loss = 0.0
        self._ends = ends
        self._random = random.Random(0)
        self._queue: list[tuple[float, int, int, bytes]] = []  # due time, number, end, packet
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._forward)

    @property
    def prefix(self) -> tuple[str, ...]:
        """A command that runs another one behind the link."""
        return ("ip", "netns", "exec", self.namespace)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Forward packets until the end of the block."""
        self._thread.start()
        try:
            yield
        finally:
            os.close(self._stopped)
            self._thread.join()
            os.close(self._stop)

    def _forward(self) -> None:
        number = 0
        with selectors.DefaultSelector() as selector:
            for source in (*self._ends, self._stop):
                selector.register(source, selectors.EVENT_READ)
            while True:
                wait_s = max(0.0, self._queue[0][0] - time.monotonic()) if self._queue else None
                for key, _ in selector.select(wait_s):
                    if key.fd == self._stop:
                        return
                    packet = os.read(key.fd, _MTU)
                    if self._random.random() >= self.loss:
                        number += 1
                        other = self._ends[key.fd == self._ends[0]]
                        due = time.monotonic() + self.latency_s
                        heapq.heappush(self._queue, (due, number, other, packet))
                while self._queue and self._queue[0][0] <= time.monotonic():
                    _, _, end, packet = heapq.heappop(self._queue)
                    with suppress(OSError):  # a device whose queue is full loses packets, too
                        os.write(end, packet)


@contextmanager
def lossy_link() -> Iterator[LossyLink]:
    """Create a link, by now without latency and loss; skips the test if this process may not do it."""
    if os.geteuid() != 0 or shutil.which("ip") is None or not _DEVICE.exists():
        pytest.skip("a network namespace needs root, iproute2 and /dev/net/tun")
    name = f"chaos-{uuid4().hex[:8]}"
    with ExitStack() as stack:
        if subprocess.run(["ip", "netns", "add", name], check=False).returncode != 0:
            pytest.skip("the system allows no network namespace")
        stack.callback(_ip, "netns", "delete", name)
        ends = [_open_device(f"{name[-8:]}{end}", stack) for end in "cs"]
        _ip("link", "set", f"{name[-8:]}s", "netns", name)
        _bring_up(f"{name[-8:]}c", _CLIENT_ADDRESS, SERVER_ADDRESS)
        _bring_up(f"{name[-8:]}s", SERVER_ADDRESS, _CLIENT_ADDRESS, "-netns", name)
        link = LossyLink(name, (ends[0], ends[1]))
        stack.enter_context(link.running())
        yield link


def _open_device(name: str, stack: ExitStack) -> int:
    device = os.open(_DEVICE, os.O_RDWR)
    stack.callback(os.close, device)  # removes it
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN_NO_PI))
    return device


def _bring_up(device: str, address: str, peer: str, *namespace: str) -> None:
    _ip(*namespace, "address", "add", address, "peer", peer, "dev", device)
    _ip(*namespace, "link", "set", device, "up", "mtu", str(_MTU))


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
