"""A real server in a thread of the test process, with a device that tests can pause."""

import asyncio
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest

from resnet_service.images import Crop
from resnet_service.runtimes import DeviceMemory, Runtime, TopKResult
from resnet_service.server.engine_manager import EngineManager
from resnet_service.server.listener import bind_sockets, share_addresses, sockets_for_workers
from resnet_service.server.local_backend import LocalBackend
from resnet_service.server.run import create_grpc_server, uvicorn_config
from resnet_service.server.state import AppState, build_app_state
from resnet_service.server.uvicorn_server import InferenceServer
from resnet_service.server.workers.main_process import MainProcess
from resnet_service.settings import Settings

DEFAULT_WORKERS = int(os.environ.get("TEST_WORKERS", "0"))
"""HTTP workers of all servers whose settings do not say how many; set to 2 to test both kinds."""


in_this_process = pytest.mark.skipif(
    DEFAULT_WORKERS > 0, reason="the test looks into the process that handles HTTP, or replaces a part of it"
)


only_once = pytest.mark.skipif(
    DEFAULT_WORKERS > 0, reason="nothing here depends on TEST_WORKERS: the run without it has tested it"
)


def has_ipv6() -> bool:
    """Whether this machine has the address ::1."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


class GatedRuntime:
    """A real runtime that can hold batches on the device; `begun` counts the batches that have reached it."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.name, self.device, self.precision = runtime.name, runtime.device, runtime.precision
        self.embedding_size = runtime.embedding_size
        self._gate = threading.Event()
        self._gate.set()
        self.begun = threading.Semaphore(0)
        self.error: Exception | None = None

    def run(self, crops: Sequence[Crop], k: int, *, with_embeddings: bool = False) -> TopKResult:
        self.begun.release()
        assert self._gate.wait(30), "the test did not release the device"
        if self.error is not None:
            raise self.error
        return self._runtime.run(crops, k, with_embeddings=with_embeddings)

    def memory(self) -> DeviceMemory | None:
        return self._runtime.memory()

    def release(self) -> None:
        self._gate.set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold all batches from now until `release` or the end of the block."""
        while self.begun.acquire(blocking=False):
            pass  # forget the batches of earlier requests
        self._gate.clear()
        try:
            yield
        finally:
            self._gate.set()


@dataclass
class Running:
    """A server that runs in a thread of this process."""

    url: str
    client: httpx.Client
    runtimes: list[GatedRuntime]
    service: AppState
    engines: EngineManager
    server: InferenceServer | MainProcess
    thread: threading.Thread
    grpc_url: str

    @property
    def runtime(self) -> GatedRuntime:
        """The runtime of a server that has exactly one."""
        [runtime] = self.runtimes
        return runtime

    def stop(self) -> None:
        """Stop the server before the end of `serving`."""
        self.server.should_exit = True
        self.thread.join(30)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of /metrics with this name and these labels; 0 without any."""
        text = self.client.get("/metrics").text
        required = {f'{key}="{value}"' for key, value in labels.items()}
        matches = (re.match(rf"{name}(?:{{(.*)}})? (\S+)$", line) for line in text.splitlines())
        return sum(
            float(match[2]) for match in matches if match and required <= set((match[1] or "").split(","))
        )

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Send requests until the condition holds; they take the place of sleeping."""
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "the condition did not become true within 20 s"
            self.client.get("/healthz")


@contextmanager
def serving(settings: Settings, *, grpc: bool = False) -> Iterator[Running]:
    """Yield a server on a free port, ready for requests, and stop it at the end of the block.

    With `grpc`, it has a port for gRPC as well.
    It has no HTTP workers, or as many as the variable TEST_WORKERS says, unless the test sets a number.
    """
    runtimes: list[GatedRuntime] = []

    def gated(runtime: Runtime) -> GatedRuntime:
        runtimes.append(GatedRuntime(runtime))
        return runtimes[-1]

    workers = DEFAULT_WORKERS if settings.workers == "auto" else settings.workers
    # One stream, unless the test sets more: on a busy machine OpenVINO may select two.
    streams = settings.streams_per_device or 1
    service = build_app_state(
        settings.model_copy(update={"streams_per_device": streams}), gated, workers=workers
    )
    backend = service.backend
    assert isinstance(backend, LocalBackend)
    sockets = bind_sockets(settings.host, 0)
    host, port = sockets[0].getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    grpc_sockets = bind_sockets(settings.host, 0, "--grpc-port") if grpc else []
    grpc_url = "{}:{}".format(*grpc_sockets[0].getsockname()[:2]) if grpc else ""
    server: InferenceServer | MainProcess
    if workers:
        listeners = sockets_for_workers(sockets, workers)
        server = MainProcess(service, listeners, grpc_sockets=grpc_sockets)
        thread = threading.Thread(target=asyncio.run, args=(server.serve(),), name="server")
    else:
        config = uvicorn_config(service, timeout_graceful_shutdown=10)
        grpc_server = create_grpc_server(service, share_addresses(grpc_sockets))
        server = InferenceServer(service, config, grpc=grpc_server)
        thread = threading.Thread(target=server.run, args=(sockets,), name="server")
    thread.start()
    try:
        limits = httpx.Limits(max_connections=None)
        with httpx.Client(base_url=url, timeout=30, limits=limits) as client:
            running = Running(url, client, runtimes, service, backend.engines, server, thread, grpc_url)
            _wait_until_ready(running)
            yield running
    finally:
        for reserved in grpc_sockets:
            reserved.close()
        for runtime in runtimes:
            runtime.release()
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def _wait_until_ready(running: Running) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert running.thread.is_alive(), "the server has ended"
        try:
            if running.client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
    raise AssertionError("the server was not ready within 60 s")
