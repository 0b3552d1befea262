"""Reload the model of a real server: no request is lost, and a failed reload changes nothing."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest

from resnet_service.errors import InferenceError
from resnet_service.inference.engine import Engine
from resnet_service.models.checkpoint import load_checkpoint
from resnet_service.models.repository import VersionConfig
from resnet_service.settings import Settings
from tests.support.models import write_checkpoint
from tests.support.server import Running, serving

KEY = "administrator-0123456789"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint that the server serves, which tests may replace."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    write_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def module_server(model: Path) -> Iterator[Running]:
    """Yield a server with this checkpoint and an API key for reloads."""
    settings = Settings(model=str(model), api_keys=f"{KEY} admin", public_scopes="predict,metrics,bench")
    with serving(settings) as running:
        yield running


@pytest.fixture
def server(module_server: Running, model: Path) -> Running:
    """Return the server with the original checkpoint loaded."""
    write_checkpoint(model)
    if module_server.engines.current.model.labels != load_checkpoint(model).labels:
        assert reload(module_server).status_code == 200
    return module_server


def reload(server: Running) -> httpx.Response:
    return server.client.post("/reload", headers={"Authorization": f"Bearer {KEY}"}, timeout=60)


def first_label(server: Running, image: bytes) -> str:
    response = server.client.post("/predict", files={"file": image})
    assert response.status_code == 200
    label: str = response.json()["predictions"][0]["label"]
    return label


def test_reload_replaces_the_model_and_frees_the_previous_one(
    server: Running, model: Path, jpeg: bytes
) -> None:
    """After a reload, requests and metrics use the new model, and the previous engine is garbage."""
    label = first_label(server, jpeg)
    previous = weakref.ref(server.engines.current)
    write_checkpoint(model, label_prefix="new-")
    response = reload(server)
    assert response.status_code == 200
    assert response.json()["labels"] == 10
    assert first_label(server, jpeg) == f"new-{label}"
    assert server.metric("inference_ready") == 1
    assert server.metric("inference_queue_wait_limit_seconds") == 20
    gc.disable()  # reference counts must suffice: in a real process the collector skips frozen objects
    try:
        server.wait_for(lambda: previous() is None)
    finally:
        gc.enable()


def test_no_request_is_lost_during_reloads(server: Running, model: Path, jpeg: bytes) -> None:
    """Under load and through several reloads, each image is classified by the previous or the new model."""
    is_done = threading.Event()

    def send_requests() -> list[int | str]:
        results: list[int | str] = []
        while not is_done.is_set():
            response = server.client.post("/predict", files={"file": jpeg})
            status = response.status_code
            results.append(response.json()["predictions"][0]["label"] if status == 200 else status)
        return results

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(send_requests) for _ in range(4)]
        try:
            for prefix in ("b-", "c-", "d-"):
                write_checkpoint(model, label_prefix=prefix)
                assert reload(server).status_code == 200
        finally:
            is_done.set()
        results = [result for client in clients for result in client.result()]
    assert not [status for status in results if isinstance(status, int)]
    assert len({str(label).rpartition("-")[2] for label in results}) == 1
    assert any(str(label).startswith("c-") for label in results)


def test_request_keeps_the_model_it_started_with(server: Running, model: Path, jpeg: bytes) -> None:
    """A request whose images are on the device during a reload gets the labels of the previous model."""
    label = first_label(server, jpeg)
    previous = server.runtimes[-1]
    with ThreadPoolExecutor(1) as pool, previous.held():
        parts = [("file", (f"{number}.jpg", jpeg)) for number in range(64)]
        waiting = pool.submit(server.client.post, "/predict/batch", files=parts)
        assert previous.begun.acquire(timeout=30)
        write_checkpoint(model, label_prefix="new-")
        assert reload(server).status_code == 200
        assert first_label(server, jpeg) == f"new-{label}"
        previous.release()
        results = waiting.result().json()["results"]
    assert [result["predictions"][0]["label"] for result in results] == [label] * 64


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(b"not a checkpoint"), "not a readable checkpoint"),
        (lambda path: path.unlink(), "file not found"),
        (partial(write_checkpoint, scale=float("nan")), "not finite"),
    ],
    ids=["unreadable", "missing", "not finite"],
)
def test_unusable_model_leaves_the_current_one_serving(
    server: Running, model: Path, jpeg: bytes, damage: Callable[[Path], object], reason: str
) -> None:
    """If the checkpoint cannot be used, the reload fails with the reason, and the current model serves on."""
    label = first_label(server, jpeg)
    damage(model)
    response = reload(server)
    assert response.status_code == 500
    assert response.json()["type"].endswith("reload-failed")
    assert "nothing has changed" in response.json()["detail"]
    assert reason in response.json()["detail"]
    assert first_label(server, jpeg) == label
    assert server.client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InferenceError("not enough shared memory"), "not enough shared memory"),
        (ValueError("secret"), "see the log"),
    ],
)
def test_failed_warm_up_leaves_the_current_model_serving(
    server: Running, jpeg: bytes, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    """A model that fails its warm-up gets no requests; the message of an unexpected error is not shown."""
    load_engine = server.engines.load_engine

    def load_failing_engine(version: VersionConfig) -> Engine:
        engine = load_engine(version)
        server.runtimes[-1].error = error
        return engine

    monkeypatch.setattr(server.engines, "load_engine", load_failing_engine)
    response = reload(server)
    assert response.status_code == 500
    assert reason in response.json()["detail"]
    assert "secret" not in response.text
    assert first_label(server, jpeg)
    assert server.metric("inference_ready") == 1


def test_second_reload_at_the_same_time_is_409(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a reload runs, another one is rejected, and the first one succeeds."""
    is_loading, may_finish = threading.Event(), threading.Event()
    load_engine = server.engines.load_engine

    def load_slowly(version: VersionConfig) -> Engine:
        is_loading.set()
        assert may_finish.wait(30)
        return load_engine(version)

    monkeypatch.setattr(server.engines, "load_engine", load_slowly)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(reload, server)
        assert is_loading.wait(30)
        assert reload(server).status_code == 409
        may_finish.set()
        assert first.result().status_code == 200
