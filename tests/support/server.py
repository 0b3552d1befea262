"""A real server in a thread of the test process, whose device can be paused."""

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
from resnet_service.server.run import Server, uvicorn_config
from resnet_service.server.state import AppState, build_app_state
from resnet_service.settings import Settings


class GatedRuntime:
    """A real runtime whose batches can be held on the device; `begun` counts those that got there."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.name, self.device, self.precision = runtime.name, runtime.device, runtime.precision
        self._gate = threading.Event()
        self._gate.set()
        self.begun = threading.Semaphore(0)
        self.error: Exception | None = None

    def run(self, crops: Sequence[Crop], k: int) -> TopKResult:
        self.begun.release()
        assert self._gate.wait(30), "the test never opened the gate"
        if self.error is not None:
            raise self.error
        return self._runtime.run(crops, k)

    def memory(self) -> DeviceMemory | None:
        return self._runtime.memory()

    def release(self) -> None:
        self._gate.set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold every batch from now until `release` or the end of the block."""
        while self.begun.acquire(blocking=False):
            pass  # batches of earlier requests
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
    server: uvicorn.Server
    thread: threading.Thread

    @property
    def runtime(self) -> GatedRuntime:
        """The only runtime."""
        [runtime] = self.runtimes
        return runtime

    def stop(self) -> None:
        """End the server now, as at the end of `serving`."""
        self.server.should_exit = True
        self.thread.join(30)

    def metric(self, name: str, **labels: str) -> float:
        """Return a sample of /metrics by its name and labels; 0 where it does not exist yet."""
        text = self.client.get("/metrics").text
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        for line in text.splitlines():
            found = re.match(rf"{name}(?:{{(.*)}})? (\S+)$", line)
            if found and wanted <= set((found[1] or "").split(",")):
                return float(found[2])
        return 0.0

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Ask the server until the condition holds; each question is a request, so nothing sleeps."""
        ends = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < ends, "the condition never came true"
            self.client.get("/healthz")


class _ThreadedServer(Server):
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
    """Serve for real, on a port that the system chooses, until the block ends."""
    runtimes: list[GatedRuntime] = []

    def gated(runtime: Runtime) -> GatedRuntime:
        runtimes.append(GatedRuntime(runtime))
        return runtimes[-1]

    # On a busy machine OpenVINO may find that two are best.
    service = build_app_state(
        settings.model_copy(update={"streams_per_device": settings.streams_per_device or 1}), gated
    )
    config = uvicorn_config(service, port=0, timeout_graceful_shutdown=10)
    server = _ThreadedServer(service, config)
    thread = threading.Thread(target=server.run, name="server")
    thread.start()
    try:
        assert server.listening.wait(30)
        limits = httpx.Limits(max_connections=None)
        with httpx.Client(base_url=server.url, timeout=30, limits=limits) as client:
            running = Running(server.url, client, runtimes, service, server, thread)
            running.wait_for(lambda: client.get("/readyz").status_code == 200)
            yield running
    finally:
        for runtime in runtimes:
            runtime.release()
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
