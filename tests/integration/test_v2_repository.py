"""Triton's model repository: the index of models, a load as a reload, and what is not supported."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from resnet_service.errors import DeviceError
from resnet_service.images import Crop
from resnet_service.models.repository import VersionConfig
from resnet_service.runtimes import DeviceMemory, Runtime, TopKResult
from resnet_service.server.state import build_app_state
from resnet_service.settings import Settings
from tests.support.http import oversized
from tests.support.models import write_checkpoint
from tests.support.server import Running, in_this_process, serving
from tests.support.v2 import error_message

ADMIN, USER = "administrator-0123456789", "predictions-0123456789"
INDEX, LOAD = "/v2/repository/index", "/v2/repository/models/{}/load"
READY = {"name": "model", "version": "1", "state": "READY", "reason": ""}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint that the server serves; its name is `model`."""
    path = tmp_path_factory.mktemp("repository") / "model" / "model.safetensors"
    path.parent.mkdir()
    write_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Running]:
    """Yield a server with this checkpoint, a key for administration and one for predictions."""
    settings = Settings(
        model=str(model), api_keys=f"{ADMIN} predict admin,{USER} predict", public_scopes="metrics"
    )
    with serving(settings) as running:
        yield running


@pytest.fixture
def triton(server: Running) -> Iterator[Any]:
    with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


def key(value: str) -> dict[str, str]:
    return {"X-API-Key": value}


def post(server: Running, path: str, api_key: str = ADMIN, **body: Any) -> httpx.Response:
    return server.client.post(path, headers=key(api_key), timeout=60, **body)


def test_index_has_the_model_of_the_service(server: Running, triton: Any) -> None:
    """The client reads its name, version and state; a key for predictions is enough."""
    assert triton.get_model_repository_index(headers=key(USER)) == [READY]
    for body in ({}, {"ready": True}, {"ready": False}):
        assert post(server, INDEX, USER, json=body).json() == [READY]
    assert server.client.post(INDEX).status_code == 401


def test_load_reloads_the_model(server: Running, triton: Any, model: Path) -> None:
    """It replaces the engine, as /reload does."""
    write_checkpoint(model)
    before = server.engines.current
    triton.load_model("model", headers=key(ADMIN))
    assert server.engines.current is not before
    assert triton.get_model_repository_index(headers=key(ADMIN)) == [READY]


def test_failed_load_says_why_and_keeps_the_model(triton: Any, model: Path) -> None:
    """The error is that of /reload, in the body of the protocol."""
    model.write_bytes(b"damaged")
    try:
        with pytest.raises(InferenceServerException, match="nothing has changed") as error:
            triton.load_model("model", headers=key(ADMIN))
        assert error.value.status() == "500"
        assert triton.get_model_repository_index(headers=key(ADMIN)) == [READY]
    finally:
        write_checkpoint(model)


def test_only_one_load_runs_at_a_time(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one gets 409, whether it comes over this route or over /reload."""
    begun, go_on = threading.Event(), threading.Event()
    load_engine = server.engines.load_engine

    def load_slowly(version: VersionConfig) -> Any:
        begun.set()
        assert go_on.wait(30)
        return load_engine(version)

    monkeypatch.setattr(server.engines, "load_engine", load_slowly)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, server, LOAD.format("model"))
        assert begun.wait(30)
        error_message(post(server, LOAD.format("model")), 409)
        assert post(server, "/reload").status_code == 409
        assert post(server, INDEX).json() == [READY]  # the previous engine serves
        go_on.set()
        assert first.result().status_code == 200


def test_only_model_cannot_be_unloaded(triton: Any) -> None:
    """The message says why."""
    with pytest.raises(InferenceServerException, match=r"cannot be unloaded: it is the only model") as error:
        triton.unload_model("model", headers=key(ADMIN))
    assert error.value.status() == "409"
    assert triton.is_model_ready("model", headers=key(ADMIN))


@pytest.mark.parametrize("operation", ["load_model", "unload_model"])
def test_other_models_are_unknown(triton: Any, operation: str) -> None:
    """The message has the name of the model that the server has."""
    with pytest.raises(InferenceServerException, match=r"unknown model 'other'.*'model'") as error:
        getattr(triton, operation)("other", headers=key(ADMIN))
    assert error.value.status() == "404"


@pytest.mark.parametrize("operation", ["load_model", "unload_model"])
def test_load_and_unload_need_the_scope_admin(triton: Any, operation: str) -> None:
    """As /reload does; otherwise the client learns nothing about the models."""
    for name in ("model", "other"):
        for headers, status in (({}, "401"), (key(USER), "403")):
            with pytest.raises(InferenceServerException) as error:
                getattr(triton, operation)(name, headers=headers)
            assert error.value.status() == status


def test_overrides_of_the_configuration_are_rejected(server: Running, triton: Any) -> None:
    """The settings say what is loaded."""
    before = server.engines.current
    with pytest.raises(InferenceServerException, match="config and files are not supported") as error:
        triton.load_model("model", headers=key(ADMIN), config="{}")
    assert error.value.status() == "422"
    body = {"parameters": {"file:1/model.onnx": "AAAA"}}
    assert "config and files" in error_message(post(server, LOAD.format("model"), json=body), 422)
    assert server.engines.current is before


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (INDEX, b"{", 422, "invalid JSON"),
        (INDEX, b"\xff", 422, "invalid JSON"),
        (INDEX, b"[]", 422, "dictionary"),
        (INDEX, b'{"ready": 1}', 422, "ready: "),
        (INDEX, b'{"redy": true}', 422, "unknown field 'redy'; did you mean 'ready'?"),
        pytest.param(INDEX, b"[" * 60_000, 422, "invalid JSON", id="deep"),
        pytest.param(INDEX, b" " * 70_000, 413, "65,536 bytes", id="large"),
        (LOAD.format("model"), b'{"parameters": {"x": 1}}', 422, "unknown parameter 'x'"),
        (LOAD.format("model"), b'{"parameters": []}', 422, "parameters: "),
        (LOAD.format("model"), b'{"config": ""}', 422, "unknown field 'config'"),
    ],
)
def test_invalid_bodies_are_rejected_with_a_hint(
    server: Running, path: str, body: bytes, status: int, message: str
) -> None:
    """No body changes anything, and the next request is served."""
    before = server.engines.current
    assert message in error_message(post(server, path, content=body), status)
    assert server.engines.current is before
    assert post(server, INDEX).json() == [READY]


def test_compressed_and_late_bodies_are_rejected(server: Running) -> None:
    """415, and 408 after the time to receive a request."""
    headers = {"Content-Encoding": "gzip"} | key(ADMIN)
    error_message(server.client.post(INDEX, content=b"{}", headers=headers), 415)
    with serving(Settings(model="cifar10", read_timeout_s=0.5)) as impatient:
        request = f"POST {INDEX} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        response = oversized(impatient, request, b"x", 1)
    assert response.startswith(b"HTTP/1.1 408")
    assert b'{"error":' in response


def test_draining_model_is_unavailable(model: Path) -> None:
    """It still serves open connections; `ready` leaves it out."""
    with serving(Settings(model=str(model))) as draining:
        draining.engines.current.begin_drain()
        [entry] = draining.client.post(INDEX).json()
        assert entry == READY | {"state": "UNAVAILABLE", "reason": "the service is shutting down"}
        assert draining.client.post(INDEX, json={"ready": True}).json() == []


class _LostDevice:
    """A runtime whose device fails at the first batch."""

    def __init__(self, runtime: Runtime) -> None:
        self.name, self.device, self.precision = runtime.name, runtime.device, runtime.precision
        self.embedding_size: int | None = None

    def run(self, crops: Sequence[Crop], k: int, *, with_embeddings: bool = False) -> TopKResult:  # noqa: ARG002
        raise DeviceError("the device is lost")

    def memory(self) -> DeviceMemory | None:
        return None


@in_this_process
def test_model_is_loading_until_it_is_warm_and_unavailable_if_that_fails() -> None:
    """The reason says what to do."""
    state = build_app_state(Settings(model="cifar10"), _LostDevice)

    async def states() -> list[tuple[str, str]]:
        [loading] = await state.backend.model_statuses()
        state.backend.start()
        with suppress(DeviceError):
            await state.backend.wait_until_warm()
        [failed] = await state.backend.model_statuses()
        await state.close()
        return [(status.state, status.reason) for status in (loading, failed)]

    assert asyncio.run(states()) == [
        ("LOADING", "the model is warming up"),
        ("UNAVAILABLE", "the model or the device has failed; restart the process"),
    ]
