"""`serve --workers 2` as a process: its end, and the end of its workers."""

import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.processes import environment, started, until
from tests.support.sandbox import wait_for

FAILING_WORKERS = """
import sys
from resnet_service.server import run
from resnet_service.server.state import build_app_state
from resnet_service.server.workers import supervisor
from resnet_service.settings import Settings

supervisor._PROGRAM = "resnet_service.no_such_module"
sys.exit(run.run_server(build_app_state(Settings(model="cifar10", port=0), workers=2)))
"""


@pytest.fixture
def temporary_files(tmp_path: Path) -> Path:
    """Return an empty folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


def test_killed_main_process_ends_its_workers_and_leaves_nothing_behind(temporary_files: Path) -> None:
    """Without the engine, every process ends with an error, and no file stays."""
    shared_memory = set(Path("/dev/shm").iterdir())
    with started("--workers", "2", TMPDIR=str(temporary_files)) as (process, log, url):
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 2
        assert httpx.get(f"{url}/readyz").status_code == 200
        process.kill()
        for _ in workers:
            until(log, "main_process_ended")
        _, alive = psutil.wait_procs(workers, timeout=2)
        assert alive == []
        wait_for(lambda: list(temporary_files.iterdir()) == [])
    assert set(Path("/dev/shm").iterdir()) <= shared_memory


def test_drained_service_leaves_nothing_behind(temporary_files: Path) -> None:
    """The files of the metrics are removed. They had no holes, which could not be written on a full disk."""
    with started("--workers", "2", TMPDIR=str(temporary_files)) as (process, _, url):
        assert httpx.get(f"{url}/readyz").status_code == 200
        sizes = [path.stat() for path in temporary_files.rglob("*.db")]
        assert len(sizes) == 2 * 4
        assert all(512 * size.st_blocks >= size.st_size for size in sizes)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert list(temporary_files.iterdir()) == []


def test_workers_that_cannot_start_end_the_service() -> None:
    """It does not restart them for ever."""
    program = [sys.executable, "-c", FAILING_WORKERS]
    ended = subprocess.run(
        program, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 1
    assert "workers_failed" in ended.stdout
    assert "no_such_module" in ended.stderr
