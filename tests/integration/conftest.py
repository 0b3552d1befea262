"""Fixtures of the integration tests: servers with several models, without and with HTTP workers."""

from collections.abc import Iterator

import pytest

from resnet_service.settings import Settings
from tests.support.repository import ADMIN, USER, Repository, load, unload
from tests.support.server import Running, serving


@pytest.fixture(scope="session", params=[0, 2], ids=["one process", "two workers"])
def started_models_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """Yield a server with a model repository and a port for gRPC."""
    repository = Repository(tmp_path_factory.mktemp("repository"))
    repository.restore()
    keys = f"{ADMIN} admin predict metrics,{USER} predict"
    settings = Settings(
        model="auto",
        model_repository=repository.folder,
        api_keys=keys,
        public_scopes="predict,metrics",
        workers=request.param,
    )
    with serving(settings, grpc=True) as running:
        yield running


@pytest.fixture
def repository(started_models_server: Running) -> Repository:
    """Return the repository of the server, with its original models."""
    folder = started_models_server.service.settings.model_repository
    assert folder is not None
    original = Repository(folder)
    original.restore()
    return original


@pytest.fixture
def models_server(started_models_server: Running, repository: Repository) -> Running:
    """Return the server with the original models loaded, and no other one."""
    assert repository.folder.is_dir()
    for name in ("fruits", "pets"):
        assert load(started_models_server, name).status_code == 200
    for name in started_models_server.engines.models.names:
        if name not in ("fruits", "pets"):
            assert unload(started_models_server, name).status_code == 200
    if started_models_server.engines.models.names[0] != "fruits":
        assert unload(started_models_server, "pets").status_code == 200
        assert load(started_models_server, "pets").status_code == 200
    return started_models_server
