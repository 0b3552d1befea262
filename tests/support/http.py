"""HTTP requests as bytes on a socket, for requests that HTTP clients do not send."""

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from typing import Any

import httpx

from tests.support.server import Running

PROBLEM_MEDIA_TYPE = "application/problem+json"


def assert_problem(response: httpx.Response, status: int, kind: str) -> str:
    """Check that a response is a problem of this status and kind, and documented; return its detail."""
    assert response.status_code == status, response.text
    operation = _documented_paths(str(response.url.join("/")).rstrip("/"))[response.url.path]
    assert str(status) in operation[response.request.method.lower()]["responses"]
    assert response.headers["content-type"] == PROBLEM_MEDIA_TYPE
    body = response.json()
    assert body["status"] == status
    assert body["type"].endswith(kind)
    return str(body["detail"])


@cache
def _documented_paths(origin: str) -> dict[str, Any]:
    return dict(httpx.get(f"{origin}/openapi.json").json()["paths"])


def files(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    """Return a form with one `file` part per image, named 0.jpg, 1.jpg and so on, for httpx."""
    return [("file", (f"{number}.jpg", image)) for number, image in zip(count(), images, strict=False)]


def send_only(
    server: Running, body: bytes, path: str = "/predict", length: int | None = None, *, key: str = ""
) -> socket.socket:
    """Send a request, or the first `length` bytes of its body, without reading the response."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    headers = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nX-API-Key: {key}\r\n"
    connection.sendall(f"{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body[:length])
    return connection


def reset(connection: socket.socket) -> None:
    """Close a connection with a reset, which the service cannot take for a half-close."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def oversized(server: Running, headers: str, chunk: bytes, chunks: int) -> bytes:
    """Send the headers and chunks of a request that is too large, and return the response."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(headers.encode())
        for _ in range(chunks):
            connection.sendall(chunk)
        response = b""
        while received := connection.recv(65536):
            response += received
        return response


class Client:
    """A connection that sends arbitrary bytes and reads one response at a time."""

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
        """Send the data repeatedly until the server closes the connection."""
        with suppress(BrokenPipeError, ConnectionResetError):
            while True:
                self.send(data)

    def answer(self) -> tuple[int, dict[str, str], Any]:
        """Read one response: status, headers (names in lower case), body as JSON."""
        status = self.status()
        lines = iter(self._file.readline, b"\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.decode().partition(":") for line in lines)
        }
        return status, headers, json.loads(self._file.read(int(headers["content-length"])))

    def has_answer(self) -> bool:
        """Return whether a byte arrives before the socket's timeout; the byte is not consumed."""
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except TimeoutError:
            return False

    def status(self) -> int:
        """Read the status line of a response and return the status."""
        return int(self._file.readline().split()[1])

    def skip_line(self) -> None:
        self._file.readline()

    def is_closed(self) -> bool:
        """Wait for the next byte, and return whether the server has closed the connection instead."""
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def reset(self) -> None:
        """Close the connection with a reset."""
        self._file.close()
        reset(self.socket)


@contextmanager
def connected(url: str, **options: int) -> Iterator[Client]:
    client = Client(url, **options)
    try:
        yield client
    finally:
        client.close()


def post(image: bytes, *headers: str, path: str = "/predict") -> bytes:
    """Return a complete request with this image as its body."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        "Content-Type: image/jpeg",
        f"Content-Length: {len(image)}",
    ]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + image
