"""Commands in surroundings that lack something: they work, or end with one line and the documented status."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Final

import httpx
import pytest
from PIL import Image

from monitoring.local import free_port
from tests.support.processes import environment

_CLOSED: Final = "{command} <&- >&- 2>&-"
_FULL: Final = "{command} >/dev/full 2>&1"
_UNKNOWN_USER: Final = (
    "exec setpriv --reuid 12345 --regid 12345 --clear-groups --inh-caps +dac_read_search "
    "--ambient-caps +dac_read_search "  # the folders of Python may be open to their owner only
    "env --unset HOME --unset USER --unset LOGNAME --unset XDG_CACHE_HOME --unset TORCHINDUCTOR_CACHE_DIR "
    "{variables} {command}"
)
_READ_ONLY: Final = (
    "exec unshare --mount sh -c 'for folder in /tmp /var/tmp; do mount --bind $folder $folder && "
    "mount -o remount,bind,ro $folder || exit 99; done; cd /proc; {unknown}'"
)
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="changing the user or the mounts needs root and util-linux",
)


def shell_command(surroundings: str, *arguments: str, python_flags: str = "") -> list[str]:
    """Return a shell command that runs `resnet-service ARGUMENTS` in the surroundings."""
    command = f"{sys.executable} {python_flags} -m resnet_service {' '.join(arguments)}"
    unknown = _UNKNOWN_USER.format(variables="TMPDIR=/tmp", command=command)
    text = surroundings.format(command=command, variables="", unknown=unknown)
    return ["bash", "-c", text]


def run(surroundings: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `resnet-service ARGUMENTS` in the surroundings until it ends."""
    return subprocess.run(
        shell_command(surroundings, *arguments),
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )


@contextmanager
def running(command: list[str], url: str, **variables: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a service, whose log may be lost, and wait until it is ready."""
    with subprocess.Popen(command, env=environment(**variables)) as process:
        try:
            while True:
                try:
                    if httpx.get(f"{url}/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                try:
                    raise AssertionError(f"the service ended with status {process.wait(0.2)}")
                except subprocess.TimeoutExpired:
                    continue  # it is starting
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize(
    ("surroundings", "python_flags"),
    [
        pytest.param(_CLOSED, "", id="closed streams"),
        pytest.param(_FULL, "", id="full streams"),
        pytest.param("{command}", "-OO", id="optimized Python"),
        pytest.param("ulimit -n 64; {command}", "", id="64 open files"),
        pytest.param("cd /proc; {command}", "", id="read-only working folder"),
        pytest.param(_UNKNOWN_USER, "", id="unknown user", marks=needs_root),
    ],
)
def test_service_serves_and_ends_in_odd_surroundings(
    surroundings: str, python_flags: str, workers: str, jpeg: bytes
) -> None:
    """It answers JPEG and PNG, and SIGTERM ends it with status 0."""
    png = BytesIO()
    Image.new("RGB", (64, 64)).save(png, "PNG")  # decoded by another process
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = shell_command(
        f"exec {surroundings}" if surroundings.startswith("{") else surroundings.replace("; {", "; exec {"),
        *("serve", "--model", "cifar10", "--port", str(port), "--workers", workers),
        python_flags=python_flags,
    )
    with running(command, url) as process:
        for image in (jpeg, png.getvalue()):
            assert httpx.post(f"{url}/predict", files={"file": image}, timeout=60).status_code == 200
        metrics = httpx.get(f"{url}/metrics").text
        dropped = float(metrics.partition("\ninference_log_lines_dropped_total ")[2].partition("\n")[0])
        assert (dropped > 0) == (surroundings == _FULL)
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.parametrize("arguments", [("serve", "--port", "0"), ("classify",)], ids=["serve", "classify"])
@pytest.mark.parametrize(
    ("surroundings", "message"),
    [
        pytest.param(
            "ulimit -v 1000000; {command}", "not enough memory or open files", id="1 GB of address space"
        ),
        pytest.param(
            "cd $(mktemp -d); rmdir $PWD; {command}", "the working folder does not exist", id="no folder"
        ),
        pytest.param(_READ_ONLY, "No usable temporary directory", id="nothing to write", marks=needs_root),
    ],
)
def test_lack_of_a_resource_ends_a_command_with_one_line_and_status_1(
    surroundings: str, message: str, arguments: tuple[str, ...]
) -> None:
    """The line says what is missing."""
    result = run(surroundings, *arguments)
    assert result.returncode == 1, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    line = result.stderr.rstrip()
    assert line.startswith("resnet-service: ")
    assert message in line


def test_service_with_too_few_open_files_ends_with_one_line() -> None:
    """Native libraries would abort the process."""
    result = run("ulimit -n 20; {command}", "serve", "--port", "0")
    assert result.returncode == 1, result.stderr
    assert result.stderr == (
        "resnet-service: too few open files are allowed (ulimit -n); a service needs 64\n"
    )


@pytest.mark.parametrize(
    ("surroundings", "arguments", "status"),
    [
        ("{command} >/dev/full", ("classify", "--json"), 1),
        ("{command} >/dev/full", ("bench", "--batch-sizes", "1", "--iterations", "1"), 1),
        ("{command} 2>/dev/full", ("serve", "--port", "http"), 2),
        ("{command} 2>/dev/full", ("serve", "--host", "name.invalid"), 1),
        ("{command} 2>/dev/full", ("serve", "--model", "nonsense", "--port", "0"), 3),
        ("{command} 2>&-", ("serve", "--model", "nonsense", "--port", "0"), 3),
        ("{command} >&- 2>&-", ("classify",), 0),
    ],
)
def test_output_that_cannot_be_written_does_not_change_the_exit_status(
    surroundings: str, arguments: tuple[str, ...], status: int
) -> None:
    """Lost messages are lost; lost results are an error with one line."""
    result = subprocess.run(
        shell_command(surroundings, *arguments),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    if surroundings == "{command} >/dev/full":
        assert result.stderr.splitlines()[-1] == "resnet-service: No space left on device"
