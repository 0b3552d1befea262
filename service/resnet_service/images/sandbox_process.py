"""The main loop of a sandbox process: receive an image, decode it, send the crop or the error.

The service does not trust this process: a reply has a limited size and is never unpickled.

A request is a REQUEST_HEADER with the lengths of the two parts that follow: the pickled arguments
(preprocessing, max_pixels) and the image file. A reply is a REPLY_HEADER with a status, the length of what
follows, and width and height of the image. The pixels of the crop follow if the status is CROP, otherwise a
message; width and height are then 0.
"""

import logging
import pickle
import resource
import signal
import socket
import struct
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Final

from PIL import Image

from resnet_service.errors import InvalidImageError, PayloadTooLarge, ServiceError, UnsupportedMediaType
from resnet_service.images import formats
from resnet_service.images.limits import limit_memory
from resnet_service.images.preprocess import Preprocessing

REQUEST_HEADER: Final = struct.Struct("=QQ")
REPLY_HEADER: Final = struct.Struct("=BQII")

ERRORS: Final[tuple[type[ServiceError], ...]] = (InvalidImageError, PayloadTooLarge, UnsupportedMediaType)
"""The status of a reply is the position of the error's type, CROP, or BUG for any other exception."""
CROP: Final = 254
BUG: Final = 255
MAX_MESSAGE_BYTES: Final = 10_000
READY: Final = b"r"
"""Sent once, before the first request is received."""

_FREED_BYTES: Final = 31 * 2**20


def main() -> None:
    """Decode images until the service closes its end of the socket, which is standard input.

    Arguments of the process: the memory limit in bytes, and the time limit in seconds for one image, after
    which the process ends itself, because the service may have ended.
    """
    memory_bytes, timeout_s = int(sys.argv[1]), float(sys.argv[2])
    with socket.socket(fileno=sys.stdin.fileno()) as connection:
        _prepare(memory_bytes)
        try:
            connection.sendall(READY)
            while True:
                lengths = REQUEST_HEADER.unpack(receive(connection, REQUEST_HEADER.size))
                arguments, data = (receive(connection, length) for length in lengths)
                signal.setitimer(signal.ITIMER_REAL, timeout_s)  # SIGALRM ends the process
                status, reply, size = _decode(data, *pickle.loads(arguments))  # noqa: S301 - from the service
                signal.setitimer(signal.ITIMER_REAL, 0)
                connection.sendall(REPLY_HEADER.pack(status, len(reply), *size))
                connection.sendall(reply)
        except (EOFError, ConnectionError):
            pass  # the service has ended


def receive(connection: socket.socket, length: int, deadline: float | None = None) -> bytearray:
    """Return the next `length` bytes.

    `deadline` is a time of `time.monotonic`. Raises TimeoutError at the deadline, EOFError if the other end
    closes, and what the socket raises.
    """
    buffer = bytearray(length)
    rest = memoryview(buffer)
    while rest:
        if deadline is not None:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise TimeoutError
            connection.settimeout(remaining_s)
        count = connection.recv_into(rest)
        if count == 0:
            raise EOFError
        rest = rest[count:]
    return buffer


def _decode(
    data: bytearray, preprocessing: Preprocessing, max_pixels: int
) -> tuple[int, memoryview, tuple[int, int]]:
    try:
        decoded = formats.decode(data, preprocessing, max_pixels)
        return CROP, decoded.crop.data.cast("B"), (decoded.width, decoded.height)
    except ERRORS as error:
        status, message = ERRORS.index(type(error)), str(error)
    except Exception:  # noqa: BLE001
        status, message = BUG, traceback.format_exc()  # the service raises it
    return status, memoryview(message.encode(errors="replace")[-MAX_MESSAGE_BYTES:]), (0, 0)


def _prepare(memory_bytes: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may be sent to all processes; the service drains
    warnings.simplefilter("ignore")
    logging.disable()
    Image.MAX_IMAGE_PIXELS = None  # `max_pixels` is the limit
    # glibc returns memory to the system after each image and gets it back page by page, until a block of
    # this size has been freed: mallopt(3), M_MMAP_THRESHOLD. A WebP then takes 2.7 ms instead of 3.4 ms.
    bytearray(_FREED_BYTES)
    if sys.platform == "linux":
        # If the machine or the container runs out of memory, the kernel ends this process, not the service.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    limit_memory(memory_bytes)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it writes no files
