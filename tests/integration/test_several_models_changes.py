"""Loads, reloads and unloads beside requests: what they must not change, lose, delay or reach."""

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import pytest
import tritonclient.grpc
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from resnet_service.errors import DeviceOutOfMemoryError
from resnet_service.inference.engine import Engine
from resnet_service.models import ModelVersion
from resnet_service.models.repository import VersionConfig
from resnet_service.settings import Settings
from tests.support.http import files
from tests.support.repository import (
    ADMIN,
    Repository,
    answered,
    answered_v2,
    index,
    infer,
    infer_rpc,
    load,
    post,
    predict,
    runtime_of,
    statistics,
    unload,
    write_version,
)
from tests.support.server import Running, only_once, serving
from tests.support.v2 import error_message

pytestmark = only_once


@pytest.fixture
def server(models_server: Running) -> Running:
    """Return a server with the models of `Repository`."""
    return models_server


@pytest.fixture
def triton(server: Running) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        yield client


def state(server: Running) -> tuple[Any, ...]:
    """Return the engines, the index, the versions with statistics, and the series of gauges and counters."""
    families = text_string_to_metric_families(server.client.get("/metrics").text)
    series = sorted(
        (sample.name, *sample.labels.items())
        for family in families
        for sample in family.samples
        if family.type != "histogram" and "model" in sample.labels
    )
    return dict(server.engines.engines), index(server), sorted(statistics(server)), series


def test_requests_on_the_device_are_finished_when_their_model_is_unloaded(
    server: Running, repository: Repository, triton: Any, jpeg: bytes
) -> None:
    """They get their results and are counted, although new requests already get 404."""
    write_version(repository.folder, "birds", 1)
    assert load(server, "birds").status_code == 200
    before = statistics(server)["birds-1"]
    runtime = runtime_of(server, "birds")
    freed: list[Callable[[], object]] = [
        weakref.ref(runtime),
        weakref.ref(server.engines.find(ModelVersion("birds", "1"))),
    ]
    with ThreadPoolExecutor(4) as pool, runtime.held():
        send_batch = partial(server.client.post, "/predict/batch", params={"model": "birds"})
        sent = [pool.submit(send_batch, files=files(*[jpeg] * 40))]
        assert runtime.begun.acquire(timeout=30)
        sent.append(pool.submit(predict, server, jpeg, model="birds"))
        inferred, called = pool.submit(infer, server, "birds"), pool.submit(infer_rpc, triton, "birds")
        server.wait_for(lambda: server.metric("inference_in_flight") == 40 + 1 + 3 + 3)
        assert unload(server, "birds").status_code == 200
        server.wait_for(lambda: predict(server, jpeg, model="birds").status_code == 404)
        runtime.release()
        assert [answered(future.result()) for future in sent] == ["birds-1"] * 2
        assert (answered_v2(inferred.result()), called.result()) == ("birds-1", "birds-1")
    del runtime
    images, successes, failures = statistics(server)["birds-1"]
    assert (images - before[0], successes - before[1], failures - before[2]) == (47, 4, 0)
    server.runtimes.clear()
    gc.disable()  # reference counts must suffice: in a real process the collector skips frozen objects
    try:
        server.wait_for(lambda: not any(reference() for reference in freed))
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["pets", "birds"])
@pytest.mark.parametrize("reason", ["not a readable checkpoint", "the device is out of memory"])
def test_failed_load_changes_nothing(
    server: Running,
    repository: Repository,
    monkeypatch: pytest.MonkeyPatch,
    jpeg: bytes,
    name: str,
    reason: str,
) -> None:
    """Neither engines, index, statistics nor metrics, of a loaded model and of a new one."""
    write_version(repository.folder, name, 1)
    file = write_version(repository.folder, name, 77)
    load_engine = server.engines.load_engine

    def load_too_large(version: VersionConfig) -> Engine:
        engine = load_engine(version)
        if version.key.version == "77":
            server.runtimes[-1].error = DeviceOutOfMemoryError("the device is out of memory")
        return engine

    if "memory" in reason:
        monkeypatch.setattr(server.engines, "load_engine", load_too_large)
    else:
        file.write_bytes(b"damaged")
    assert (
        answered(predict(server, jpeg, model="pets")) == "pets-1"
    )  # its best class has a series from now on
    before = state(server)
    message = error_message(load(server, name), 500)
    assert "nothing has changed" in message
    assert reason in message
    assert state(server) == before
    assert answered(predict(server, jpeg, model="pets")) == "pets-1"
    if name == "pets":  # a model that is not loaded stays so
        assert post(server, "/reload").status_code == 500
        assert state(server) == before


def test_canary_answers_its_share_of_the_requests_without_a_version(
    server: Running, repository: Repository, triton: Any, jpeg: bytes
) -> None:
    """The response says which version has answered; one that the request names is not replaced."""
    repository.split("fruits", "version: 1\ncanary: {version: 2, percent: 50}\n")
    assert load(server, "fruits").status_code == 200
    answers = {
        "HTTP": Counter(answered(predict(server, jpeg)) for _ in range(40)),
        "v2": Counter(answered_v2(infer(server, "fruits")) for _ in range(40)),
        "gRPC": Counter(infer_rpc(triton, "fruits") for _ in range(40)),
    }
    for counts in answers.values():  # a correct service fails here once in 10^9 runs
        assert set(counts) == {"fruits-1", "fruits-2"}, answers
    for version in ("1", "2"):
        assert {answered(predict(server, jpeg, version=version)) for _ in range(20)} == {f"fruits-{version}"}
    repository.split("fruits", "version: 1\n")
    assert load(server, "fruits").status_code == 200
    assert {answered(predict(server, jpeg)) for _ in range(20)} == {"fruits-1"}


@pytest.mark.parametrize(
    "name", ["..%2Foutside", "%2E%2E%2Foutside", "%2E%2E", ".", ".hidden", "fruits%2F1", "%00"]
)
def test_names_in_requests_do_not_reach_other_folders(
    server: Running, repository: Repository, name: str
) -> None:
    """Only names in the index can be loaded: no path, no hidden folder."""
    outside = repository.folder.parent / "outside"
    copytree(repository.folder / "fruits", outside, dirs_exist_ok=True)
    copytree(repository.folder / "fruits", repository.folder / ".hidden")
    before = state(server)
    assert post(server, f"/v2/repository/models/{name}/load").status_code in (404, 405)
    assert state(server) == before


@pytest.mark.parametrize("name", ["../outside", "/", "..", ".hidden", "fruits/1", "", "x" * 10_000])
def test_names_in_calls_do_not_reach_other_folders(
    server: Running, repository: Repository, triton: Any, name: str
) -> None:
    """As in requests of HTTP."""
    copytree(repository.folder / "fruits", repository.folder.parent / "outside", dirs_exist_ok=True)
    copytree(repository.folder / "fruits", repository.folder / ".hidden")
    before = state(server)
    with pytest.raises(InferenceServerException, match="unknown model") as error:
        triton.load_model(name, headers={"x-api-key": ADMIN})
    assert error.value.status() == "StatusCode.NOT_FOUND"
    assert state(server) == before


@pytest.mark.parametrize("by_signal", [False, True], ids=["/reload", "SIGHUP"])
@pytest.mark.parametrize("workers", [0, 2])
def test_reload_reads_all_loaded_models_and_the_keys(
    tmp_path: Path, jpeg: bytes, workers: int, by_signal: bool
) -> None:
    """New models are loaded, those that were unloaded are not, and a new key is valid."""
    repository = Repository(tmp_path / "models")
    repository.folder.mkdir()
    repository.restore()
    keys = tmp_path / "keys"
    keys.write_text(f"{ADMIN} admin predict\n")
    settings = Settings(
        model="auto",
        model_repository=repository.folder,
        api_keys_file=keys,
        public_scopes="predict,metrics",
        workers=workers,
    )
    with serving(settings) as server:
        assert unload(server, "pets").status_code == 200
        before = dict(server.engines.engines)
        write_version(repository.folder, "fruits", 3)
        write_version(repository.folder, "birds", 1)
        keys.write_text(f"{ADMIN} admin predict\nanother-key-0123456789 predict\n")
        if by_signal:
            server.server.monitor.reload_requested = True
        else:
            assert post(server, "/reload").status_code == 200
        server.wait_for(lambda: server.engines.models.names == ("fruits", "birds"))
        assert not set(server.engines.engines.values()) & set(before.values())
        server.wait_for(lambda: predict(server, jpeg, model="birds").status_code == 200)
        assert answered(predict(server, jpeg)) == "fruits-3"
        assert predict(server, jpeg, model="pets").status_code == 404
        assert index(server)["pets", ""] == "UNAVAILABLE"
        with httpx.Client(base_url=server.url, headers={"X-API-Key": "another-key-0123456789"}) as client:
            assert client.get("/info").status_code == 200
        assert load(server, "pets").status_code == 200
        server.wait_for(lambda: answered(predict(server, jpeg, model="pets")) == "pets-1")
