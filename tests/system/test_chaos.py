"""Faults of the system around a service: stopped processes, and resources that are used up."""

import errno
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count, filterfalse, islice
from pathlib import Path
from typing import Final, NamedTuple

import httpx
import psutil
import pytest
from PIL import Image

from monitoring.local import run_prometheus
from tests.support.cgroups import MemoryGroup, limited, real_cgroup
from tests.support.chaos import ChaosService, chaos_service, stopped
from tests.support.http import files
from tests.support.images import encode, make_image
from tests.support.prometheus import require_program
from tests.support.sandbox import wait_for

pytestmark = pytest.mark.exclusive  # the limits on time are short

_SANDBOX_TIMEOUT_S: Final = 4
_IN_SURROUNDINGS: Final = (
    'for folder in "$TMPDIR" /dev/shm; do mount -t tmpfs -o size=16m tmpfs "$folder" || exit 99; done; '
    'echo $$ >"$PROCS"; exec "$@"'
)
_IS_ROOT: Final = os.geteuid() == 0 and shutil.which("unshare") is not None


class Limit(NamedTuple):
    """A limit of a control group, for both versions of control groups."""

    controller: str
    v1: Mapping[str, str]
    v2: Mapping[str, str]

    @contextmanager
    def on(self, service: ChaosService) -> Iterator[None]:
        """Limit all processes of a service; skip the test if this process may not do it."""
        try:
            with real_cgroup(self.controller, v1=self.v1, v2=self.v2):
                pass
        except OSError as error:
            pytest.skip(f"needs root and control groups with {self.controller}: {error}")
        pids = [process.pid for process in service.processes]
        with limited(self.controller, pids, v1=self.v1, v2=self.v2):
            yield


@pytest.fixture(scope="module")
def png() -> bytes:
    """Return an image that a process of the sandbox decodes."""
    return encode(make_image(), "PNG")


@pytest.fixture(scope="module")
def memory_group() -> Iterator[MemoryGroup | None]:
    """Yield a control group for a service; None if this process may not create one."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(real_cgroup("memory", v1={}, v2={"memory.max": "max"}))
        except OSError:
            yield None
        else:
            yield MemoryGroup(folder)


@pytest.fixture(scope="module", params=["0", "2"], ids=["one process", "two workers"])
def service(
    request: pytest.FixtureRequest, memory_group: MemoryGroup | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChaosService]:
    """Yield a service; with root it has a control group, and a small /dev/shm and TMPDIR of its own."""
    flags = ("--workers", request.param, "--sandbox-timeout-s", str(_SANDBOX_TIMEOUT_S))
    folder = str(tmp_path_factory.mktemp("temporary"))
    procs = str(memory_group.procs) if memory_group else os.devnull
    prefix = ("unshare", "--mount", "sh", "-c", _IN_SURROUNDINGS, "sh") if _IS_ROOT else ()
    with chaos_service(
        *flags, "--sandbox-processes", "2", prefix=prefix, TMPDIR=folder, PROCS=procs
    ) as running:
        yield running


def test_system_without_more_processes_rejects_what_needs_one(
    service: ChaosService, jpeg: bytes, png: bytes
) -> None:
    """All threads for JPEG have started with the service; an image for a process that has not gets 429."""
    assert service.status("/metrics") == 200
    assert service.decoders == []
    with Limit("pids", {"pids.max": "1"}, {"pids.max": "1"}).on(service):
        assert service.classify_all([jpeg] * 20) == {200: 20}
        assert service.classify_all([png] * 4) == {429: 4}
        assert service.status("/healthz") == service.status("/readyz") == service.status("/metrics") == 200
    service.assert_normal(jpeg, png)


def _main(service: ChaosService) -> list[psutil.Process]:
    return [psutil.Process(service.process.pid)]


def _worker(service: ChaosService) -> list[psutil.Process]:
    return service.workers[:1]


def _everything(service: ChaosService) -> list[psutil.Process]:
    return service.processes


def responds(service: ChaosService) -> bool:
    """Return whether a probe gets a response within a second."""
    try:
        httpx.get(f"{service.url}/readyz", timeout=1)
    except httpx.ReadTimeout:
        return False
    return True


@pytest.mark.parametrize("select", [_main, _worker, _everything], ids=["main", "worker", "everything"])
def test_requests_wait_for_a_stopped_process(
    select: Callable[[ChaosService], list[psutil.Process]], service: ChaosService, jpeg: bytes, png: bytes
) -> None:
    """SIGSTOP for less than the stall timeout loses no request, and each is counted once."""
    processes = select(service)
    if not processes:
        pytest.skip("one process has no workers")
    images = [jpeg, png] * 4
    before = service.metric("inference_images_total", outcome="ok")
    with ThreadPoolExecutor(1) as pool:
        with stopped(processes):
            results = pool.submit(service.classify_all, images)
            if select is _worker:  # the other one responds
                wait_for(lambda: responds(service))
                wait_for(lambda: not responds(service))
            else:
                assert not responds(service)
        assert results.result() == {200: len(images)}
    service.assert_normal(jpeg)
    assert service.metric("inference_images_total", outcome="ok") == before + len(images) + 1
    assert service.metric("inference_in_flight") == 0


def test_service_that_was_stopped_for_long_ends() -> None:
    """SIGSTOP for more than a second above the stall timeout: at SIGCONT it ends with status 1."""
    with chaos_service("--stall-timeout-s", "1") as service:
        with stopped(_main(service)), pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{service.url}/healthz", timeout=4)
        assert service.process.wait(30) == 1


def test_stopped_decoder_costs_its_image(service: ChaosService, jpeg: bytes, png: bytes) -> None:
    """SIGSTOP of all processes of the sandbox: at the time limit their images get 413; JPEG does not wait."""
    service.assert_normal(png)
    decoders = service.decoders
    with stopped(decoders), ThreadPoolExecutor(1) as pool:
        results = pool.submit(service.classify_all, [png] * 4)
        assert service.classify_all([jpeg] * 8) == {200: 8}
        counts = results.result()
    assert 1 <= counts[413] <= len(decoders)
    assert counts[200] == 4 - counts[413]
    service.assert_normal(jpeg, png)


def test_throttled_cpu_slows_requests_down(service: ChaosService, jpeg: bytes, png: bytes) -> None:
    """With a fifth of a core, every request is answered, and the probes succeed."""
    limit = Limit(
        "cpu",
        {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "20000"},
        {"cpu.max": "20000 100000"},
    )
    service.assert_normal(jpeg, png)
    with limit.on(service):
        service.assert_normal(*[jpeg, png] * 2)
    service.assert_normal(jpeg)


def test_memory_limit_costs_the_image_that_exceeds_it(
    service: ChaosService, memory_group: MemoryGroup | None, jpeg: bytes, png: bytes
) -> None:
    """The kernel ends the process of the sandbox, whose image gets 429, and no other."""
    if memory_group is None or not _IS_ROOT:
        pytest.skip("needs root and a control group with memory")
    if not service.workers:
        pytest.skip(
            "libraries that the tests share are not in the group: the main process looks larger than it"
        )
    large = encode(Image.new("RGB", (7000, 7000)), "PNG")
    service.assert_normal(jpeg, png)
    with memory_group.limited_to(50_000_000), ThreadPoolExecutor(1) as pool:
        result = pool.submit(service.classify, large)
        assert service.classify_all([jpeg] * 8) == {200: 8}
        assert result.result() == 429
        service.assert_normal(jpeg, png)
    service.assert_normal(large)


def test_used_up_file_descriptors_close_new_connections_only(
    service: ChaosService, jpeg: bytes, png: bytes
) -> None:
    """A connection that is open is served, and the service recovers when there are descriptors again."""
    service.assert_normal(png)
    hard = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)[1]
    with httpx.Client(base_url=service.url, timeout=60) as client:
        assert client.get("/readyz").status_code == 200
        for process in service.processes:
            used = {int(path.name) for path in Path(f"/proc/{process.pid}/fd").iterdir()}
            _, second = islice(filterfalse(used.__contains__, count()), 2)
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (second, hard))  # leaves the first one
        results = service.classify_all([jpeg] * 20)
        for image in (jpeg, png):
            assert client.post("/predict", files=files(image)).status_code == 200
        assert client.get("/metrics").status_code == 200
    for process in service.processes:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (hard, hard))
    assert set(results) & {httpx.ReadError, httpx.RemoteProtocolError, httpx.WriteError}
    assert {status for status in results if isinstance(status, int)} <= {200}
    service.assert_normal(jpeg, png)


def test_worker_that_ends_without_file_descriptors_is_replaced_later(
    service: ChaosService, jpeg: bytes
) -> None:
    """No other can be started meanwhile: new connections to its socket wait for its successor."""
    workers = service.workers
    if not workers:
        pytest.skip("one process has no workers")
    main = service.process.pid
    hard = resource.prlimit(main, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(main, resource.RLIMIT_NOFILE, (0, hard))
    with ThreadPoolExecutor(1) as pool:
        try:
            workers[0].kill()
            wait_for(lambda: any(line["event"] == "worker_not_started" for line in service.log))
            results = pool.submit(service.classify_all, [jpeg] * 8)
        finally:
            resource.prlimit(main, resource.RLIMIT_NOFILE, (hard, hard))
        assert results.result() == {200: 8}
    wait_for(lambda: len(service.workers) == len(workers))
    service.assert_normal(jpeg)


def fill(folder: Path) -> None:
    """Write a file until no byte fits into the file system."""
    with (folder / "fill").open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    return
                raise


@pytest.mark.skipif(not _IS_ROOT, reason="mounting folders of its own needs root and util-linux")
def test_full_folders_fail_no_request(service: ChaosService, jpeg: bytes, png: bytes) -> None:
    """Neither /dev/shm nor the folder for temporary files is needed while the service runs."""
    process = psutil.Process(service.process.pid)
    root = f"/proc/{process.pid}/root"
    folders = [Path(f"{root}{name}") for name in ("/dev/shm", process.environ()["TMPDIR"])]
    workers = service.workers
    for folder in folders:
        fill(folder)
    try:
        for path in ("/info", "/labels", "/nowhere"):  # their series are new
            service.status(path)
        service.assert_normal(*[jpeg, png] * 4)
        assert service.classify(b"not an image") == 415
        assert service.status("/metrics") == 200
        assert service.workers == workers
    finally:
        for folder in folders:
            (folder / "fill").unlink()
    service.assert_normal(jpeg, png)


def test_frequent_scrapes_fail_no_request(service: ChaosService, jpeg: bytes, tmp_path: Path) -> None:
    """A Prometheus that scrapes every 100 ms fails no request, and gets all of its scrapes afterwards."""
    require_program("prometheus")
    target = service.url.removeprefix("http://")
    with (
        run_prometheus(target, log=tmp_path / "prometheus.log", interval="100ms") as url,
        httpx.Client(base_url=url, timeout=60) as prometheus,
    ):

        def query(expression: str) -> float:
            parameters = {"query": expression.replace("up", 'up{job="resnet-service"}')}
            found = prometheus.get("/api/v1/query", params=parameters).json()["data"]["result"]
            return float(found[0]["value"][1]) if found else 0.0

        deadline = time.monotonic() + 60
        while query("count_over_time(up[1m])") < 20:
            assert time.monotonic() < deadline
            assert service.classify_all([jpeg] * 16) == {200: 16}
        wait_for(lambda: query("min_over_time(up[1s])") == 1)
    service.assert_normal(jpeg)
