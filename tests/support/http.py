"""HTTP requests as bytes on a socket, for what no HTTP client would send."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

from tests.support.server import Running


def files(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", (f"{number}.jpg", image)) for number, image in zip(count(), images, strict=False)]


def send_only(server: Running, body: bytes, path: str = "/predict") -> socket.socket:
    """Send a whole request and leave the answer unread."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def oversized(server: Running, head: str, chunk: bytes, chunks: int) -> bytes:
    """Send a request that is too large, for as long as the server lets it, and return the answer."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode())
        for _ in range(chunks):
            connection.sendall(chunk)
        answer = b""
        while received := connection.recv(65536):
            answer += received
        return answer


class Client:
    """A connection of its own, over which anything can be sent; answers are read whole, one by one."""

    def __init__(self, url: str, receive_buffer: int | None = None) -> None:
        host, port = url.removeprefix("http://").split(":")
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(20)
        self.socket.connect((host, int(port)))
        self._file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_until_cut_off(self, data: bytes) -> None:
        """Send this again and again until nobody takes it."""
        with suppress(BrokenPipeError, ConnectionResetError):
            while True:
                self.send(data)

    def answer(self) -> tuple[int, dict[str, str], Any]:
        """Read one answer: status, headers (names in lower case), body as JSON."""
        status = self.status()
        lines = iter(self._file.readline, b"\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.decode().partition(":") for line in lines)
        }
        return status, headers, json.loads(self._file.read(int(headers["content-length"])))

    def has_answer(self) -> bool:
        """Wait for the socket's timeout, or for a byte, which is left there."""
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except TimeoutError:
            return False

    def status(self) -> int:
        """Read the status of an answer, and no more of it."""
        return int(self._file.readline().split()[1])

    def skip_line(self) -> None:
        self._file.readline()

    def is_closed(self) -> bool:
        """Wait for the next byte: true if there is none, but the end."""
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self._file.close()
        self.socket.close()


@contextmanager
def connected(url: str, **options: int) -> Iterator[Client]:
    client = Client(url, **options)
    try:
        yield client
    finally:
        client.close()


def post(image: bytes, *headers: str, path: str = "/predict") -> bytes:
    """Return a whole request."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        "Content-Type: image/jpeg",
        f"Content-Length: {len(image)}",
    ]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + image
