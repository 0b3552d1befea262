"""What breaks inside and around the service, and what it makes of that."""

import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest

from monitoring.local import free_port
from resnet_service.errors import DeviceOutOfMemoryError
from resnet_service.images import Crop, decode_image
from resnet_service.runtimes import TopKResult
from resnet_service.settings import Settings
from tests.support.file_server import FileServer
from tests.support.http import connected
from tests.support.images import encode, make_image
from tests.support.processes import COMMAND, environment, started, until
from tests.support.server import Running, serving

Run = Callable[[Sequence[Crop], int], TopKResult]


@contextmanager
def running(server: Running, wrapped: Callable[[Run], Run]) -> Iterator[None]:
    """Let the server's device do something else for a while."""
    runtime = server.runtime
    run = runtime.run
    runtime.run = wrapped(run)  # type: ignore[assignment]
    try:
        yield
    finally:
        runtime.run = run  # type: ignore[method-assign]


def classify(server: Running, image: bytes) -> int:
    return server.client.post("/predict", files={"file": image}).status_code


def outcomes(server: Running) -> dict[str, float]:
    names = ("ok", "invalid", "rejected", "failed", "expired", "cancelled")
    return {name: server.metric("inference_images_total", outcome=name) for name in names}


# The model


def test_a_model_that_fails_once(server: Running, jpeg: bytes) -> None:
    """One request gets 500, and the next is answered."""

    def once(run: Run) -> Run:
        errors = [RuntimeError("once")]

        def faulty(crops: Sequence[Crop], k: int) -> TopKResult:
            if errors:
                raise errors.pop()
            return run(crops, k)

        return faulty

    with running(server, once):
        assert [classify(server, jpeg) for _ in range(3)] == [500, 200, 200]


def test_a_model_that_always_fails(server: Running, jpeg: bytes) -> None:
    """Each request gets 500 and is counted; the process lives, and serves again when the fault is gone."""

    def always(_: Run) -> Run:
        def faulty(_: Sequence[Crop], __: int) -> NoReturn:
            raise RuntimeError("always")

        return faulty

    before = outcomes(server)
    with running(server, always):
        assert [classify(server, jpeg) for _ in range(20)] == [500] * 20
        assert server.client.get("/healthz").status_code == 200
    assert outcomes(server)["failed"] - before["failed"] == 20
    assert classify(server, jpeg) == 200


def test_a_model_that_fails_for_one_image(server: Running, jpeg: bytes) -> None:
    """In a batch of many, the one that the model cannot stand fails alone."""
    poison = encode(make_image(seed=7), "PNG")
    poisonous = decode_image(poison, server.service.engine.model.preprocessing)

    def picky(run: Run) -> Run:
        def faulty(crops: Sequence[Crop], k: int) -> TopKResult:
            if any((crop == poisonous).all() for crop in crops):
                raise RuntimeError("poison")
            return run(crops, k)

        return faulty

    parts = [("file", poison if number == 13 else jpeg) for number in range(32)]
    with running(server, picky):
        results = server.client.post("/predict/batch", files=parts).json()["results"]
    assert [index for index, result in enumerate(results) if "error" in result] == [13]


def test_a_device_out_of_memory(jpeg: bytes) -> None:
    """The batch shrinks until it fits, and everybody is answered."""

    def small(run: Run) -> Run:
        def faulty(crops: Sequence[Crop], k: int) -> TopKResult:
            if len(crops) > 4:
                raise DeviceOutOfMemoryError("too many")
            return run(crops, k)

        return faulty

    with serving(Settings(model="bundled")) as server, running(server, small):
        for _ in range(2):
            answer = server.client.post("/predict/batch", files=[("file", jpeg)] * 32)
            assert not [result for result in answer.json()["results"] if "error" in result]
        assert 2 <= server.metric("inference_largest_batch") <= 4


HANGING = """
import sys
import threading
from resnet_service.log_config import configure_logging
from resnet_service.server.run import run_server
from resnet_service.server.state import build_app_state
from resnet_service.settings import Settings

configure_logging(style="json")
service = load(Settings(model="bundled", port=0, streams_per_device=1, access_log=False, {settings}))
{fault}
sys.exit(run_server(service))
"""
STUCK_DEVICE = """
[runtime] = service.engine.runtimes
run = runtime.run
runtime.run = lambda crops, k: threading.Event().wait() if k > 1 else run(crops, k)  # 1: the warm-up
"""
STUCK_LOOP = """
async def stand_still(*_):
    threading.Event().wait()
service.engine.classify = stand_still
"""


def test_a_model_that_hangs(jpeg: bytes) -> None:
    """Its requests get 504, /healthz fails, and the process ends by itself, as failed."""
    program = HANGING.format(
        settings="drain_timeout_s=4, request_timeout_s=1, stall_timeout_s=1.5", fault=STUCK_DEVICE
    )
    with started(program=program) as (process, log, url), httpx.Client(base_url=url, timeout=60) as client:
        assert client.post("/predict", files={"file": jpeg}).status_code == 504
        while (health := client.get("/healthz")).status_code == 200:
            pass
        assert health.status_code == 503
        assert "too long" in health.json()["detail"]
        until(log, "engine_stuck")
        assert process.wait(30) == 1


def test_an_event_loop_that_stands_still(jpeg: bytes) -> None:
    """Where nothing can even be answered any more, the process ends and leaves every thread's stack."""
    program = HANGING.format(settings="stall_timeout_s=1", fault=STUCK_LOOP)
    with started(program=program) as (process, log, url):
        with pytest.raises(httpx.HTTPError):
            httpx.post(f"{url}/predict", files={"file": jpeg}, timeout=60)
        assert process.wait(30) == 1
        said = "".join(str(event["event"]) for event in log)
    assert "Timeout" in said
    assert "stand_still" in said


# The decoding threads


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), MemoryError(), RecursionError()])
def test_a_decoding_thread_survives(
    server: Running, jpeg: bytes, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Whatever is raised while an image is decoded costs that request, and no thread, loop or process."""
    threads = server.service.settings.decode_threads or 4

    def fail(*_: Any) -> NoReturn:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("resnet_service.inference.engine.decode_image", fail)
        assert [classify(server, jpeg) for _ in range(2 * threads)] == [500] * 2 * threads
    assert classify(server, jpeg) == 200


# The disk


def test_a_full_disk_under_the_log(jpeg: bytes) -> None:
    """A log that cannot be written costs the log, and no request."""
    url = f"http://127.0.0.1:{free_port()}"  # which the log cannot tell
    command = [*COMMAND, "--model", "bundled", "--port", url.rpartition(":")[2]]
    with (
        Path("/dev/full").open("w") as full,
        subprocess.Popen(command, stderr=full, env=environment()) as process,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        try:
            wait_until_ready(client, process)
            for _ in range(20):
                assert client.post("/predict", files={"file": jpeg}).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()


def wait_until_ready(client: httpx.Client, process: "subprocess.Popen[bytes]") -> None:
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        assert process.poll() is None
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
    raise AssertionError("it never became ready")


def test_a_full_disk_under_the_cache(jpeg: bytes, tmp_path: Path) -> None:
    """Where compiled models cannot be kept, the service starts and answers all the same."""
    with started(limit=(resource.RLIMIT_FSIZE, 0), XDG_CACHE_HOME=str(tmp_path)) as (_, _, url):
        assert httpx.post(f"{url}/predict", files={"file": jpeg}).status_code == 200


def test_a_cache_that_may_not_be_written(jpeg: bytes) -> None:
    """The same without permission to make the cache's folder, for anybody."""
    with started(XDG_CACHE_HOME="/proc/none") as (_, _, url):
        assert httpx.post(f"{url}/predict", files={"file": jpeg}).status_code == 200


def test_a_full_disk_under_a_download(file_server: FileServer, tmp_path: Path) -> None:
    """Weights that cannot be stored stop the start with the reason, and leave no half of a file."""
    (file_server.folder / "weights.pth").write_bytes(bytes(100_000))
    cache = tmp_path / "cache"
    command = [*COMMAND, "--model", "resnet18", "--weights", f"{file_server.url}/weights.pth"]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment(TORCH_HOME=str(cache), XDG_CACHE_HOME=str(cache)),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
        timeout=120,
        check=False,
    )
    assert result.returncode == 3, result.stderr
    assert "too large" in result.stderr
    assert "Traceback" not in result.stderr
    assert not [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size]


# The clock


def test_the_clock_may_jump(jpeg: bytes, tmp_path: Path) -> None:
    """A day forward and a year back: deadlines, queues and time limits do not look at the time of day."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("needs libfaketime")
    clock = tmp_path / "clock"
    clock.write_text("+0")
    faked: dict[str, Any] = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with (
        started("--request-timeout-s", "20", **faked) as (_, _, url),
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        for offset in ("+0", "+1d", "-1y", "+0"):
            clock.write_text(offset)
            answer = client.post("/predict", files={"file": jpeg})
            assert answer.status_code == 200
            assert 0 < answer.json()["timing_ms"]["total"] < 20_000
            with ThreadPoolExecutor(8) as pool:
                answers = [pool.submit(client.post, "/predict", files={"file": jpeg}) for _ in range(40)]
            assert {each.result().status_code for each in answers} == {200}
        assert client.get("/readyz").status_code == 200


# The process


def test_a_second_signal_ends_at_once(jpeg: bytes) -> None:
    """Whoever does not want to wait for the drain says so again."""
    program = HANGING.format(settings="drain_timeout_s=1000, request_timeout_s=1000", fault=STUCK_DEVICE)
    with started(program=program) as (process, log, url), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"{url}/predict", files={"file": jpeg}, timeout=60)
        while "inference_in_flight 1.0" not in httpx.get(f"{url}/metrics").text:
            pass
        process.send_signal(signal.SIGTERM)
        until(log, "draining")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 1
        assert isinstance(asked.exception(), httpx.HTTPError)


def test_a_killed_service_starts_again(jpeg: bytes) -> None:
    """After SIGKILL under load nothing is left that keeps a new one from the same port."""
    with started() as (process, _, url), ThreadPoolExecutor(4) as pool:
        asked = [
            pool.submit(httpx.post, f"{url}/predict", files={"file": jpeg}, timeout=30) for _ in range(40)
        ]
        assert asked[0].result().status_code == 200
        process.kill()
        process.wait()
    with started("--port", url.rpartition(":")[2]) as (_, _, again):
        assert again == url
        assert httpx.post(f"{url}/predict", files={"file": jpeg}).status_code == 200


def test_few_open_files(jpeg: bytes) -> None:
    """Where the system allows few open files, idle clients make room for new ones, and none is kept out."""
    with started(limit=(resource.RLIMIT_NOFILE, 600)) as (_, _, url), ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connected(url))
        assert httpx.post(f"{url}/predict", files={"file": jpeg}).status_code == 200
