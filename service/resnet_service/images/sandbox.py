"""Decode images in processes with limits on memory and time.

A crash of a decoder or an endless decode ends the process and costs the one image. Each process has its own
socket, because that takes 0.1 to 0.2 ms per image. Pebble's pool, which has time limits as well, takes 1.0 to
1.6 ms (500 x 375 pixels, two processes): three threads and two pickled messages per image. The processes of
`multiprocessing` would run the program's main module again, which is the user's.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from queue import LifoQueue
from threading import Lock
from typing import Final, Literal

import numpy as np

from resnet_service.errors import InvalidImageError, OverloadedError, PayloadTooLarge, ServiceUnavailable
from resnet_service.images import sandbox_process
from resnet_service.images.limits import DEFAULT_MEMORY_BYTES, DEFAULT_TIMEOUT_S
from resnet_service.images.preprocess import DecodedImage, Preprocessing
from resnet_service.images.sandbox_process import (
    BUG,
    CROP,
    ERRORS,
    MAX_MESSAGE_BYTES,
    READY,
    REPLY_HEADER,
    REQUEST_HEADER,
    receive,
)
from resnet_service.machine import available_cpus, available_memory

RestartReason = Literal["crashed", "killed", "timeout"]
"""`killed`: by the system, not by the service."""

_MAX_PROCESSES: Final = 8
_SELF_DESTRUCTION: Final = 2.0
"""A process ends itself after this multiple of the time limit."""
_START_TIMEOUT_S: Final = 60.0
"""For the imports of a process, which take 0.2 s on an idle machine."""
_EXIT_TIMEOUT_S: Final = 1.0
"""For the exit of a process that has closed its socket."""
_RETRY_AFTER_S: Final = 1.0
_PROGRAM: Final = f"from {sandbox_process.__name__} import main; main()"


class Sandbox:
    """Up to `processes` processes that decode images; each starts when it is first needed.

        sandbox = Sandbox(2)
        crop = sandbox.decode(png, model.preprocessing, max_pixels=50_000_000).crop
        sandbox.close()

    All methods may be called from any thread.
    """

    def __init__(
        self,
        processes: int | None = None,
        *,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        on_restart: Callable[[RestartReason], None] = lambda _: None,
    ) -> None:
        """Start no process yet.

        `processes` is by default one per CPU core, at most 8, and at most as many as fit in half of the free
        memory. `memory_bytes` limits what one process may allocate, `timeout_s` the time for one image.
        `on_restart` is called when a process has ended or was ended.
        """
        self.processes = processes or default_processes(memory_bytes)
        self._memory_bytes = memory_bytes
        self._timeout_s = timeout_s
        self._on_restart = on_restart
        self._closed = False
        self._lock = Lock()
        self._running: set[_Process] = set()
        # Last in, first out: a further process starts only if all that run are in use.
        self._idle: LifoQueue[_Process | None] = LifoQueue()
        for _ in range(self.processes):
            self._idle.put(None)

    def decode(self, data: bytes | bytearray, preprocessing: Preprocessing, max_pixels: int) -> DecodedImage:
        """Decode an image and return its upright center crop, [S, S, 3] uint8 RGB, and its size.

        Waits until a process is idle. Raises what `resnet_service.images.formats.decode` raises,
        PayloadTooLarge if the image takes longer than the time limit, InvalidImageError if it crashes the
        decoder, OverloadedError if the system ends the process or cannot start one, RuntimeError if a new
        process fails, and ServiceUnavailable after `close`.
        """
        if 2 * len(data) > self._memory_bytes:  # Pillow copies it
            raise PayloadTooLarge("decoding the image takes too much memory")
        process = self._idle.get()
        try:
            if process is not None and not process.is_usable:
                self._discard(process, process.end_reason())
                process = None
            process = process or self._start()
            try:
                return process.decode(data, preprocessing, max_pixels)
            except TimeoutError as error:
                self._discard(process, "timeout")
                process = None
                raise PayloadTooLarge(f"decoding takes longer than {self._timeout_s:g} s") from error
            except (EOFError, OSError) as error:
                reason = process.end_reason()
                self._discard(process, reason)
                process = None
                if reason == "killed":  # an image over the limits gets MemoryError instead
                    message = "the system ended the decoder, probably because it is out of memory"
                    raise OverloadedError(message, "memory", _RETRY_AFTER_S) from error
                raise InvalidImageError("the image crashes the decoder") from error
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End all processes, also those that are decoding."""
        with self._lock:
            self._closed = True
            for process in self._running:
                process.kill()

    def _start(self) -> "_Process":
        with self._lock:  # none starts after `close`
            if self._closed:
                raise _shutdown_error()
            try:
                process = _Process(self._memory_bytes, self._timeout_s)
            except OSError as error:  # no more open files, processes or memory: for the moment, or at all
                message = f"no decoder can be started: {error.strerror}"
                raise OverloadedError(message, "memory", _RETRY_AFTER_S) from error
            self._running.add(process)
        try:
            process.wait_until_ready()
        except (EOFError, OSError) as error:  # not a fault of the image
            self._discard(process, process.end_reason())
            raise RuntimeError(f"a sandbox process ended with status {process.exit_status}") from error
        return process

    def _discard(self, process: "_Process", reason: RestartReason) -> None:
        process.kill()
        with self._lock:
            self._running.discard(process)
            if self._closed:
                raise _shutdown_error()
        self._on_restart(reason)


class _Process:
    """One process, which decodes one image at a time."""

    def __init__(self, memory_bytes: int, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._in_use = Lock()
        self._is_interrupted = False  # a reply may be on its way, which is not that to the next request
        self._socket, its_socket = socket.socketpair()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OPENBLAS_NUM_THREADS": "1",  # NumPy starts a thread per core otherwise
        }
        with its_socket:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-c", _PROGRAM, str(memory_bytes), str(timeout_s * _SELF_DESTRUCTION)],
                stdin=its_socket.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libtiff and others write errors there
                env=environment,
                start_new_session=True,  # Ctrl-C does not reach it; it ends with the service
            )

    @property
    def is_usable(self) -> bool:
        return self._process.poll() is None and not self._is_interrupted

    @property
    def exit_status(self) -> int | None:
        return self._process.poll()

    def end_reason(self) -> Literal["crashed", "killed"]:
        """Return why the process has ended, or why its reply is malformed."""
        with suppress(subprocess.TimeoutExpired):
            if self._process.wait(_EXIT_TIMEOUT_S) == -signal.SIGKILL:
                return "killed"
        return "crashed"

    def wait_until_ready(self) -> None:
        """Raise TimeoutError, and EOFError or OSError if the process has ended."""
        with self._in_use:
            receive(self._socket, len(READY), time.monotonic() + _START_TIMEOUT_S)

    def decode(self, data: bytes | bytearray, preprocessing: Preprocessing, max_pixels: int) -> DecodedImage:
        """Raise TimeoutError, and EOFError or OSError if the process has ended or its reply is malformed."""
        arguments = pickle.dumps((preprocessing, max_pixels))
        crop_bytes = 3 * preprocessing.crop**2
        with self._in_use:
            self._is_interrupted = True
            deadline = time.monotonic() + self._timeout_s
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(REQUEST_HEADER.pack(len(arguments), len(data)) + arguments)
            self._socket.sendall(data)
            status, length, *size = REPLY_HEADER.unpack(receive(self._socket, REPLY_HEADER.size, deadline))
            is_valid = length == crop_bytes if status == CROP else length <= MAX_MESSAGE_BYTES
            if not is_valid or status not in (CROP, BUG, *range(len(ERRORS))):
                raise EOFError
            reply = receive(self._socket, length, deadline)
            self._is_interrupted = False
        if status == CROP:
            shape = (preprocessing.crop, preprocessing.crop, 3)
            return DecodedImage(np.frombuffer(reply, np.uint8).reshape(shape), *size)
        message = reply.decode(errors="replace")
        if status == BUG:
            raise RuntimeError(f"error in a sandbox process:\n{message}")
        raise ERRORS[status](message)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        # Wakes `decode`, even if a process that the decoder started has the other end.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with self._in_use:
            self._socket.close()


def default_processes(memory_bytes: int) -> int:
    """Return the number of processes for this machine, if each may take `memory_bytes`."""
    free = available_memory()
    fitting = _MAX_PROCESSES if free is None else free // 2 // memory_bytes
    return max(1, min(available_cpus(), _MAX_PROCESSES, fitting))


def _shutdown_error() -> ServiceUnavailable:
    return ServiceUnavailable("the service shut down before the request was finished")
