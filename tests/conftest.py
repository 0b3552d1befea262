"""Fixtures: images made here, real images where they are, and a real server on a port of its own."""

import http.server
import io
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import httpx
import pytest
import uvicorn
from PIL import Image
from resnet_service.images import Crop
from resnet_service.runtimes import DeviceMemory, Runtime, TopKResult
from resnet_service.server.run import Server, uvicorn_config
from resnet_service.server.state import AppState, build_app_state
from resnet_service.settings import Settings

from load_tests.images import draw

REPOSITORY = Path(__file__).parent.parent
REAL_IMAGES = Path(os.environ.get("REAL_IMAGES", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of real photographs, which are not part of the repository."""
    if not REAL_IMAGES.is_dir():
        pytest.skip(f"needs real images in {REAL_IMAGES} (or where REAL_IMAGES says)")
    return REAL_IMAGES


@pytest.fixture(scope="session")
def dog(real_images: Path) -> bytes:
    """A photograph of a dog, 1546x1213."""
    return (real_images / "dog.jpg").read_bytes()


def make_image(width: int = 64, height: int = 48, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Draw an image of this mode."""
    return draw(width, height, seed).convert(mode)


def encode(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:  # noqa: A002
    """Return the image's file as bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache for this session's compiled models, so that tests neither find nor leave any."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def jpeg() -> bytes:
    """A small JPEG."""
    return encode(make_image())


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


@pytest.fixture(scope="session")
def bundled_settings() -> Settings:
    """The bundled model with everything else by default."""
    return Settings(model="bundled")


@pytest.fixture(scope="module")
def server(bundled_settings: Settings) -> Iterator[Running]:
    """A real server with the bundled model, shared by the tests of a module."""
    with serving(bundled_settings) as running:
        yield running


class FileServer:
    """A file server on a port of its own; `requests` lists the paths asked for."""

    def __init__(self, folder: Path) -> None:
        requests: list[str] = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(self.path)
                super().do_GET()

            def log_message(self, *_: object) -> None:
                pass

        self.folder = folder
        self.requests = requests
        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(Handler, directory=str(folder))
        )
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def file_server(tmp_path: Path) -> Iterator[FileServer]:
    folder = tmp_path / "www"
    folder.mkdir()
    with FileServer(folder) as server:
        yield server
