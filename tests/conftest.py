"""Fixtures: images made here, real images where they are, and a real server on a port of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from resnet_service.settings import Settings
from tests.support import REAL_IMAGES
from tests.support.file_server import FileServer
from tests.support.images import encode, make_image
from tests.support.server import Running, serving


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


@pytest.fixture(scope="session")
def bundled_settings() -> Settings:
    """The bundled model with everything else by default."""
    return Settings(model="bundled")


@pytest.fixture(scope="module")
def server(bundled_settings: Settings) -> Iterator[Running]:
    """A real server with the bundled model, shared by the tests of a module."""
    with serving(bundled_settings) as running:
        yield running


@pytest.fixture
def file_server(tmp_path: Path) -> Iterator[FileServer]:
    folder = tmp_path / "www"
    folder.mkdir()
    with FileServer(folder) as server:
        yield server
