"""Fixtures of all tiers, and the tier of each test as a marker."""

import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import structlog
import torch

from resnet_service.settings import Settings
from tests.support import PHOTOGRAPHS, REAL_IMAGES
from tests.support.file_server import FileServer
from tests.support.images import encode, make_image
from tests.support.models import PublishFn, replace_source
from tests.support.server import Running, serving

_TIERS = frozenset({"unit", "integration", "system"})
_TORCH_THREADS = torch.get_num_threads()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier, which is the folder that it lies in."""
    for item in items:
        [tier] = _TIERS & set(item.path.parts)
        item.add_marker(tier)


@pytest.fixture(scope="session", autouse=True)
def plain_tracebacks() -> None:
    """Log exceptions without local variables: structlog's default prints images, which takes 0.4 s each."""
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[structlog.processors.add_log_level, renderer])


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep converted and compiled models in a cache of this session, apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def default_model() -> Iterator[None]:
    """Use cifar10 unless a test names a model: `auto` depends on the network, and larger ones take longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESNET_SERVICE_MODEL", "cifar10")
        yield


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print tables one line per row, however wide the terminal that runs the tests and long their paths."""
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture(autouse=True)
def default_torch_threads() -> Iterator[None]:
    """Restore the number of threads, which a runtime sets: the results of training depend on it."""
    yield
    if torch.get_num_threads() != _TORCH_THREADS:
        torch.set_num_threads(_TORCH_THREADS)


@pytest.fixture
def torch_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set an empty cache for downloaded weights, and make all hosts but 127.0.0.1 unreachable."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: connections fail at once
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(urllib.request, "_opener", None)  # urllib caches the proxies of its first call
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> PublishFn:
    """Return a function that replaces the URL of a classifier's published weights."""
    return partial(replace_source, monkeypatch)


@pytest.fixture(scope="session")
def jpeg() -> bytes:
    """Return a small JPEG."""
    return encode(make_image())


@pytest.fixture(scope="session")
def photo() -> bytes:
    """Return a photograph of a cat, a JPEG of 451x300 pixels."""
    return (PHOTOGRAPHS / "cat.jpg").read_bytes()


@pytest.fixture(scope="session")
def real_images() -> Path:
    """Return the folder of photographs that are not part of the repository."""
    if not REAL_IMAGES.is_dir():
        pytest.skip(f"needs photographs in {REAL_IMAGES}; set REAL_IMAGES to another folder")
    return REAL_IMAGES


@pytest.fixture(scope="session")
def dog(real_images: Path) -> bytes:
    """Return a photograph of a dog, a JPEG of 1546x1213 pixels."""
    return (real_images / "dog.jpg").read_bytes()


@pytest.fixture(scope="session")
def settings() -> Settings:
    """Return the default settings, with the model cifar10."""
    return Settings()


@pytest.fixture(scope="session")
def server(settings: Settings) -> Iterator[Running]:
    """Yield a real server with the model cifar10, shared by all tests of the session."""
    with serving(settings) as running:
        yield running


@pytest.fixture
def file_server(tmp_path: Path) -> Iterator[FileServer]:
    """Yield an HTTP server for the files that a test puts into its folder."""
    folder = tmp_path / "www"
    folder.mkdir()
    with FileServer(folder) as server:
        yield server
