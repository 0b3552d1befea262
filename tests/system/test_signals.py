"""SIGTERM, SIGHUP and the end of a terminal, while `resnet-service serve` starts and while it serves."""

import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from load_tests.interrupted_starts import run_interrupted_starts
from load_tests.service import serve_command
from tests.support.models import write_checkpoint
from tests.support.processes import COMMAND, environment, events, until

_STARTS = 7
"""Of about ten seconds each; `python -m load_tests interrupted-starts` has 500."""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_sigterm_at_any_moment_of_the_start_ends_the_process(workers: str, tmp_path: Path) -> None:
    """It ends with status 0 or by the signal, and writes no traceback."""
    command = serve_command("cifar10", None, "--workers", workers)
    result = run_interrupted_starts(command, environment(), _STARTS, tmp_path)
    assert not result.served_on
    assert not result.tracebacks
    assert result.statuses.total() == _STARTS
    assert set(result.statuses) <= {0, -signal.SIGTERM}


CATCH_EVERYTHING = """
import os, signal
from resnet_service.server import signals

signals.end_at_signals()
while True:
    try:
        print(flush=True)
        signal.pause()
    except BaseException:
        pass
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_code_that_catches_everything_does_not_keep_a_start_alive(number: signal.Signals) -> None:
    """Imports, native code and libraries catch exceptions, so that the signal must not be one."""
    with subprocess.Popen([sys.executable, "-c", CATCH_EVERYTHING], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(20) == -number


@pytest.mark.skipif(os.geteuid() != 0, reason="a process ID namespace needs root")
def test_process_1_ends_at_sigterm_while_it_starts() -> None:
    """Process 1 of a container has no default action: a handler ends it, with the status of the signal."""
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", CATCH_EVERYTHING]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as unshare:
        assert unshare.stdout is not None
        unshare.stdout.readline()
        [child] = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text(encoding="ascii").split()
        os.kill(int(child), signal.SIGTERM)
        assert unshare.wait(20) == 128 + signal.SIGTERM


@contextmanager
def loading() -> Iterator[tuple["subprocess.Popen[str]", socket.socket]]:
    """A service whose start waits for a download, and the server's end of its connection."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/net.pth"
        command = [*COMMAND, "--model", "resnet18", "--weights", url]
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True
        ) as process:
            try:
                connection, _ = silent.accept()
                with connection:
                    yield process, connection
            finally:
                process.kill()


def test_sigterm_during_a_download_ends_the_process() -> None:
    """It ends by the signal, without a traceback."""
    with loading() as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_sighup_during_a_download_does_not_end_the_process() -> None:
    """Without a terminal SIGHUP means a reload, which waits; the start goes on, and reports its own error."""
    with loading() as (process, connection):
        process.send_signal(signal.SIGHUP)
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        assert process.wait(60) == 3


@pytest.mark.parametrize("workers", ["0", "2"])
def test_sighup_during_the_start_reloads_once_the_service_runs(workers: str, tmp_path: Path) -> None:
    """The signal is not lost: what changed after it was read is read again."""
    model = tmp_path / "model.safetensors"
    write_checkpoint(model)
    flags = ("--model", str(model), "--port", "0", "--workers", workers, "--log-format", "json")
    with subprocess.Popen(
        [*COMMAND, *flags], stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    ) as process:
        try:
            wait_for_blocked_sighup(process.pid)
            process.send_signal(signal.SIGHUP)
            log = events(process)
            until(log, "reloaded")
        finally:
            process.kill()


def wait_for_blocked_sighup(pid: int) -> None:
    """Wait until a process blocks SIGHUP, which is one of its first steps."""
    while True:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        blocked = int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16)
        if blocked & 1 << (signal.SIGHUP - 1):
            return


@contextmanager
def in_a_terminal(
    *flags: str, prefix: tuple[str, ...] = (), folder: Path | None = None
) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """A service that is the foreground process of a terminal, and the file descriptor of its other end."""
    terminal, its_end = pty.openpty()
    name = os.ttyname(its_end)
    command = [*prefix, *COMMAND, "--model", "cifar10", "--port", "0", "--log-format", "json", *flags]

    def take_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
        os.close(os.open(name, os.O_RDWR))  # the first terminal that the leader of a session opens

    with subprocess.Popen(
        command,
        stdin=its_end,
        stdout=its_end,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
        cwd=folder,
        preexec_fn=take_terminal,
    ) as process:
        os.close(its_end)
        try:
            yield process, terminal
        finally:
            process.kill()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_closing_the_terminal_drains_the_service(workers: str) -> None:
    """The port is free afterwards."""
    with in_a_terminal("--workers", workers) as (process, terminal):
        log = events(process)
        url = until(log, "serving")["url"]
        until(log, "ready")
        os.close(terminal)
        assert process.wait(30) == 0
        assert until(log, "stopped")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/healthz")


def test_closing_the_terminal_during_the_start_ends_the_process() -> None:
    """It ends by the signal."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/net.pth"
        with in_a_terminal("--model", "resnet18", "--weights", url) as (process, terminal):
            connection, _ = silent.accept()
            with connection:
                os.close(terminal)
                assert process.wait(20) == -signal.SIGHUP


def test_nohup_keeps_the_service_when_the_terminal_is_closed(tmp_path: Path) -> None:
    """SIGHUP is ignored, as nohup asks."""
    with in_a_terminal(prefix=("nohup",), folder=tmp_path) as (process, terminal):
        log = events(process)
        url = until(log, "serving")["url"]
        until(log, "ready")
        os.close(terminal)
        assert httpx.get(f"{url}/healthz").status_code == 200
        process.send_signal(signal.SIGHUP)
        assert httpx.get(f"{url}/healthz").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
