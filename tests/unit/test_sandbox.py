"""Images that crash a decoder, or would take minutes or gigabytes, cost one error and not the service."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from load_tests.fuzz.decompression_bombs import bombs
from resnet_service.errors import (
    InvalidImageError,
    OverloadedError,
    PayloadTooLarge,
    ServiceError,
    ServiceUnavailable,
)
from resnet_service.images import DEFAULT_MAX_PIXELS, Crop, Preprocessing, Sandbox, decode_image
from resnet_service.images.sandbox_process import CROP, REPLY_HEADER
from tests.support import FAULTS
from tests.support.images import difference, encode, make_image
from tests.support.sandbox import sandbox_processes, slow_image, wait_for

IDENTITY = Preprocessing(48, 48, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""For images of 48x48 pixels, whose crop equals the image."""

PNG = encode(make_image(48, 48), "PNG")

PROGRAM_THAT_REPLIES = """
import socket, sys
with socket.socket(fileno=sys.stdin.fileno()) as connection:
    connection.sendall(b"r")
    connection.recv(1)
    connection.sendall({reply})
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(100_000):
        pass
"""
PROGRAM_THAT_REPLIES_SLOWLY = """
import socket, sys, threading
from resnet_service.images.sandbox_process import CROP, REPLY_HEADER
with socket.socket(fileno=sys.stdin.fileno()) as connection:
    connection.sendall(b"r" + REPLY_HEADER.pack(CROP, 3 * 48 * 48, 48, 48))
    while True:
        connection.sendall(b"x")
        threading.Event().wait(0.1)
"""


class RecordingSandbox(Sandbox):
    """A sandbox with one process that records its restarts."""

    def __init__(self, **limits: Any) -> None:
        self.restarts: list[str] = []
        super().__init__(1, on_restart=self.restarts.append, **limits)

    def decoded(self, data: bytes, preprocessing: Preprocessing = IDENTITY) -> Crop:
        return self.decode(data, preprocessing, DEFAULT_MAX_PIXELS).crop


def executable(folder: Path, program: str) -> str:
    """Write a Python program that the sandbox runs instead of its own, whatever the arguments."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\n{program}")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def sandbox() -> Iterator[RecordingSandbox]:
    sandbox = RecordingSandbox()
    yield sandbox
    sandbox.close()


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def started_decode(
    sandbox: RecordingSandbox, thread: ThreadPoolExecutor
) -> tuple[Future[Crop], psutil.Process]:
    """Start to decode an image that takes 40 s, and wait until its process has worked on it."""
    others = set(sandbox_processes())
    sandbox.decoded(PNG)
    [process] = set(sandbox_processes()) - others
    used_s = process.cpu_times().user
    future = thread.submit(sandbox.decoded, slow_image(1000))
    wait_for(lambda: process.cpu_times().user > used_s + 0.1)
    return future, process


def test_process_that_crashes_in_mid_decode_costs_only_its_image(
    sandbox: RecordingSandbox, thread: ThreadPoolExecutor
) -> None:
    """That image is invalid, the restart is reported, and the next image is decoded."""
    future, process = started_decode(sandbox, thread)
    process.send_signal(signal.SIGSEGV)
    with pytest.raises(InvalidImageError, match="crashes"):
        future.result(30)
    assert sandbox.restarts == ["crashed"]
    assert difference(sandbox.decoded(PNG), make_image(48, 48)) == 0


def test_process_killed_in_mid_decode_is_not_the_fault_of_the_image(
    sandbox: RecordingSandbox, thread: ThreadPoolExecutor
) -> None:
    """As the kernel does if memory runs out: the client may send the image again."""
    future, process = started_decode(sandbox, thread)
    process.kill()
    with pytest.raises(OverloadedError, match="out of memory") as error:
        future.result(30)
    assert error.value.reason == "memory"
    assert sandbox.restarts == ["killed"]
    assert difference(sandbox.decoded(PNG), make_image(48, 48)) == 0


def test_process_killed_while_idle_costs_no_image(sandbox: RecordingSandbox) -> None:
    """If the system ends an idle process, a new one decodes the next image."""
    others = set(sandbox_processes())
    sandbox.decoded(PNG)
    [process] = set(sandbox_processes()) - others
    process.kill()
    wait_for(lambda: process.status() == psutil.STATUS_ZOMBIE)
    assert difference(sandbox.decoded(PNG), make_image(48, 48)) == 0
    assert sandbox.restarts == ["killed"]


def test_image_that_takes_minutes_is_rejected_at_the_time_limit() -> None:
    """Its process is ended, and the next image is decoded."""
    sandbox = RecordingSandbox(timeout_s=1.0)
    try:
        with pytest.raises(PayloadTooLarge, match="longer than 1 s"):
            sandbox.decoded(slow_image(5000))
        assert sandbox.restarts == ["timeout"]
        assert difference(sandbox.decoded(PNG), make_image(48, 48)) == 0
    finally:
        sandbox.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
def test_image_that_takes_gigabytes_is_rejected_at_the_memory_limit(sandbox: RecordingSandbox) -> None:
    """A GIF of 400 bytes whose frame is 65535 x 65535; the same process decodes the next image."""
    with pytest.raises(PayloadTooLarge, match="memory"):
        sandbox.decoded(dict(bombs())["bomb/gif-disposal-2"])
    assert difference(sandbox.decoded(PNG), make_image(48, 48)) == 0
    assert sandbox.restarts == []


def test_file_that_does_not_fit_the_memory_of_a_process_is_rejected() -> None:
    """Before it is sent: the process could not receive it."""
    sandbox = RecordingSandbox(memory_bytes=100_000_000)
    with pytest.raises(PayloadTooLarge, match="memory"):
        sandbox.decoded(PNG + bytes(60_000_000))
    assert difference(sandbox.decoded(PNG + bytes(40_000_000)), make_image(48, 48)) == 0
    assert sandbox.restarts == []
    sandbox.close()


REPLIES = {
    "unknown status": REPLY_HEADER.pack(100, 0, 0, 0),
    "crop of another size": REPLY_HEADER.pack(CROP, 10, 48, 48) + bytes(10),
    "long message": REPLY_HEADER.pack(0, 2**40, 0, 0),
    "half a header": REPLY_HEADER.pack(CROP, 3 * 48 * 48, 48, 48)[:4],
    "half a crop": REPLY_HEADER.pack(CROP, 3 * 48 * 48, 48, 48) + bytes(10),
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_malformed_reply_of_a_process_costs_only_its_image(
    sandbox: RecordingSandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reply: bytes
) -> None:
    """The service does not trust a process, because an image may have taken control of it."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", executable(tmp_path, PROGRAM_THAT_REPLIES.format(reply=reply)))
        with pytest.raises(InvalidImageError, match="crashes"):
            sandbox.decoded(PNG)
    assert sandbox.restarts == ["crashed"]
    assert difference(sandbox.decoded(PNG), make_image(48, 48)) == 0


def test_process_that_replies_slowly_is_ended_at_the_time_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The limit is for the whole reply: single bytes do not extend it."""
    sandbox = RecordingSandbox(timeout_s=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", executable(tmp_path, PROGRAM_THAT_REPLIES_SLOWLY))
        with pytest.raises(PayloadTooLarge, match="longer than 1 s"):
            sandbox.decoded(PNG)
    assert sandbox.restarts == ["timeout"]
    sandbox.close()


@pytest.mark.skipif(not FAULTS.is_dir(), reason="needs the files that once failed")
@pytest.mark.parametrize("path", sorted(FAULTS.glob("*.*")), ids=lambda path: path.name)
def test_file_that_once_failed_is_decoded_or_rejected(path: Path) -> None:
    """Such as 77 bytes of lossless JPEG, which end the process that decodes them at a reduced scale."""
    with suppress(ServiceError):
        assert decode_image(path.read_bytes(), IDENTITY).shape == (48, 48, 3)
    assert difference(decode_image(PNG, IDENTITY), make_image(48, 48)) == 0


def test_process_that_does_not_start_is_not_the_fault_of_the_image(
    sandbox: RecordingSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RuntimeError has its exit status; once processes start again, images are decoded."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", shutil.which("false"))
        with pytest.raises(RuntimeError, match="status 1"):
            sandbox.decoded(PNG)
    assert sandbox.restarts == ["crashed"]
    assert difference(sandbox.decoded(PNG), make_image(48, 48)) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_kernel_ends_sandbox_processes_first_if_memory_runs_out(sandbox: RecordingSandbox) -> None:
    """The process has the highest score, and the service keeps its own."""
    others = set(sandbox_processes())
    sandbox.decoded(PNG)
    [process] = set(sandbox_processes()) - others
    assert int(Path(f"/proc/{process.pid}/oom_score_adj").read_text()) == 1000
    assert int(Path("/proc/self/oom_score_adj").read_text()) < 1000


def test_error_of_the_code_is_not_reported_as_an_error_of_the_image(sandbox: RecordingSandbox) -> None:
    """An exception that no file should cause is raised with its traceback."""
    preprocessing = replace(IDENTITY, interpolation="unknown")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="KeyError"):
        sandbox.decoded(PNG, preprocessing)
    assert difference(sandbox.decoded(PNG), make_image(48, 48)) == 0


def test_sigterm_does_not_interrupt_a_decode(sandbox: RecordingSandbox, thread: ThreadPoolExecutor) -> None:
    """A supervisor may send it to all processes of the service, which then finishes its requests."""
    _, process = started_decode(sandbox, thread)
    process.terminate()
    used_s = process.cpu_times().user
    wait_for(lambda: process.cpu_times().user > used_s + 0.1)
    sandbox.close()


def test_close_ends_a_decode_and_rejects_later_images(
    sandbox: RecordingSandbox, thread: ThreadPoolExecutor
) -> None:
    """The image in progress and later ones get ServiceUnavailable; the process has ended."""
    future, process = started_decode(sandbox, thread)
    sandbox.close()
    with pytest.raises(ServiceUnavailable):
        future.result(30)
    with pytest.raises(ServiceUnavailable):
        sandbox.decoded(PNG)
    assert not process.is_running()
    assert sandbox.restarts == []


def test_processes_start_as_they_are_needed(jpeg: bytes, tmp_path: Path) -> None:
    """JPEG needs none; one image at a time needs one, which ends if the program is killed.

    The program has no `if __name__ == "__main__"`: it does not run again in the process.
    """
    for name, image in (("image.jpg", jpeg), ("image.png", PNG)):
        (tmp_path / name).write_bytes(image)
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from resnet_service.images import Preprocessing, decode_image\n"
        "for line in sys.stdin:\n"
        "    decode_image(Path(line.strip()).read_bytes(), Preprocessing(32, 32, (0, 0, 0), (1, 1, 1)))\n"
        "    print('decoded', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, program], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        counts = []
        for name in ("image.jpg", "image.png", "image.png"):
            process.stdin.write(f"{name}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "decoded\n"
            counts.append(len(sandbox_processes(process.pid)))
        assert counts == [0, 1, 1]
        children = sandbox_processes(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive
        assert process.stdout.read() == ""
