"""A real server in a thread of the test process, with a device that tests can pause."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import uvicorn

from resnet_service.images import Crop
from resnet_service.runtimes import DeviceMemory, Runtime, TopKResult
from resnet_service.server.engine_manager import EngineManager
from resnet_service.server.local_backend import LocalBackend
from resnet_service.server.run import uvicorn_config
from resnet_service.server.state import AppState, build_app_state
from resnet_service.server.uvicorn_server import InferenceServer
from resnet_service.settings import Settings


class GatedRuntime:
    """A real runtime that can hold batches on the device; `begun` counts the batches that have reached it."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.name, self.device, self.precision = runtime.name, runtime.device, runtime.precision
        self._gate = threading.Event()
        self._gate.set()
        self.begun = threading.Semaphore(0)
        self.error: Exception | None = None

    def run(self, crops: Sequence[Crop], k: int) -> TopKResult:
        self.begun.release()
        assert self._gate.wait(30), "the test did not release the device"
        if self.error is not None:
            raise self.error
        return self._runtime.run(crops, k)

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
    server: uvicorn.Server
    thread: threading.Thread

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
        """Return the value of the sample of /metrics with this name and these labels; 0 if it is missing."""
        text = self.client.get("/metrics").text
        required = {f'{key}="{value}"' for key, value in labels.items()}
        for line in text.splitlines():
            match = re.match(rf"{name}(?:{{(.*)}})? (\S+)$", line)
            if match and required <= set((match[1] or "").split(",")):
                return float(match[2])
        return 0.0

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Send requests until the condition holds; they take the place of sleeping."""
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "the condition did not become true within 20 s"
            self.client.get("/healthz")


class _ThreadedServer(InferenceServer):
    def __init__(self, service: AppState, config: uvicorn.Config) -> None:
        super().__init__(service, config)
        self.listening = threading.Event()
        self.url = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self.url = f"http://{host}:{port}"
        self.listening.set()


@contextmanager
def serving(settings: Settings) -> Iterator[Running]:
    """Yield a server on a free port, ready for requests, and stop it at the end of the block."""
    runtimes: list[GatedRuntime] = []

    def gated(runtime: Runtime) -> GatedRuntime:
        runtimes.append(GatedRuntime(runtime))
        return runtimes[-1]

    # One stream, unless the test sets more: on a busy machine OpenVINO may select two.
    service = build_app_state(
        settings.model_copy(update={"streams_per_device": settings.streams_per_device or 1}), gated
    )
    backend = service.backend
    assert isinstance(backend, LocalBackend)
    config = uvicorn_config(service, port=0, timeout_graceful_shutdown=10)
    server = _ThreadedServer(service, config)
    thread = threading.Thread(target=server.run, name="server")
    thread.start()
    try:
        assert server.listening.wait(30)
        limits = httpx.Limits(max_connections=None)
        with httpx.Client(base_url=server.url, timeout=30, limits=limits) as client:
            running = Running(server.url, client, runtimes, service, backend.engines, server, thread)
            running.wait_for(lambda: client.get("/readyz").status_code == 200)
            yield running
    finally:
        for runtime in runtimes:
            runtime.release()
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
