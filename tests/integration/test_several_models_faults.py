"""Loads that are interrupted, and what one model could do to the images of another one."""

import asyncio
import errno
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from resnet_service.errors import Conflict
from resnet_service.images import Crop
from resnet_service.inference.engine import Engine
from resnet_service.models.repository import VersionConfig
from resnet_service.runtimes import TopKResult
from resnet_service.runtimes.batch_norm import TRACING
from resnet_service.server.local_backend import LocalBackend
from resnet_service.server.state import AppState, build_app_state
from resnet_service.server.workers.shared_memory import SharedMemory, Slots
from resnet_service.server.workers.worker_models import WorkerModels
from resnet_service.settings import Settings
from tests.support.http import files
from tests.support.images import encode, make_image
from tests.support.models import write_checkpoint
from tests.support.repository import write_version
from tests.support.server import in_this_process, only_once, serving

pytestmark = only_once


def local_state(folder: Path, *names: str, workers: int = 0) -> tuple[AppState, LocalBackend]:
    """Return the state of a service with these models, and its backend, which are not started."""
    for name in names:
        write_version(folder, name, 1)
    state = build_app_state(Settings(model="auto", model_repository=folder), workers=workers)
    assert isinstance(state.backend, LocalBackend)
    return state, state.backend


@in_this_process
def test_torch_networks_classify_while_another_one_is_loaded(tmp_path: Path) -> None:
    """torch.fx replaces a method of all networks while it traces one; no request may fail of it."""
    for name in ("a", "b"):
        (tmp_path / name / "1").mkdir(parents=True)
        write_checkpoint(tmp_path / name / "1" / "model.safetensors")
    image = encode(make_image(64, 64))
    stop = threading.Event()
    statuses: list[int] = []
    settings = Settings(model="auto", model_repository=tmp_path, runtime="torch", model_threads=1)
    with serving(settings) as server, ThreadPoolExecutor(2) as pool:

        def classify() -> None:
            while not stop.is_set():
                statuses.append(server.client.post("/predict?model=a", files=files(image)).status_code)

        clients = [pool.submit(classify) for _ in range(2)]
        try:
            for _ in range(3):
                loop = server.engines.loop.result()
                asyncio.run_coroutine_threadsafe(server.service.backend.load("b"), loop).result(60)
        finally:
            stop.set()
        for client in clients:
            client.result()
    assert set(statuses) == {200}


def test_batches_wait_while_a_network_is_traced(tmp_path: Path) -> None:
    """And a trace waits for the batches: neither sees the other."""
    write_version(tmp_path, "a", 1)
    settings = Settings(model="auto", model_repository=tmp_path, runtime="torch", workers=0)
    with serving(settings) as server, ThreadPoolExecutor(1) as pool:
        with TRACING.alone():
            waiting = pool.submit(server.client.post, "/predict", files=files(encode(make_image(8, 8))))
            assert server.runtime.begun.acquire(timeout=30)
            server.client.get("/healthz")
            assert not waiting.done()
        assert waiting.result(30).status_code == 200


def test_load_goes_on_when_its_caller_is_cancelled(tmp_path: Path) -> None:
    """A client may leave, and an HTTP worker may end; another load is a conflict until the first one ends."""
    gate, loading = threading.Event(), threading.Event()

    async def cancel_a_load() -> Engine:
        state, backend = local_state(tmp_path, "a")
        backend.start()
        await backend.wait_until_warm()
        before, load_engine = backend.engines.current, backend.engines.load_engine
        changed = asyncio.Event()

        def load_slowly(version: VersionConfig) -> Engine:
            loading.set()
            assert gate.wait(30)
            return load_engine(version)

        backend.engines.load_engine, backend.on_change = load_slowly, changed.set
        load = asyncio.create_task(backend.load("a"))
        await asyncio.to_thread(loading.wait, 30)
        load.cancel()
        await asyncio.wait({load})
        with pytest.raises(Conflict):
            await backend.load("a")
        gate.set()
        await changed.wait()
        assert backend.engines.current is not before
        await state.close()
        return before

    asyncio.run(cancel_a_load())


def test_reload_by_a_signal_waits_for_a_load(tmp_path: Path) -> None:
    """It is not lost: a revoked API key would stay valid."""
    write_version(tmp_path, "a", 1)
    gate, loading = threading.Event(), threading.Event()
    with serving(Settings(model="auto", model_repository=tmp_path)) as server:
        engines = server.engines
        load_engine, before = engines.load_engine, engines.current

        def load_slowly(version: VersionConfig) -> Engine:
            loading.set()
            assert gate.wait(30)
            return load_engine(version)

        engines.load_engine = load_slowly
        load = asyncio.run_coroutine_threadsafe(server.service.backend.load("a"), engines.loop.result())
        assert loading.wait(30)
        server.server.monitor.reload_requested = True
        gate.set()
        load.result(30)
        after_load = engines.current
        assert after_load is not before
        server.wait_for(lambda: engines.current is not after_load)


def test_slots_of_an_engine_are_kept_until_its_last_request(tmp_path: Path) -> None:
    """Also if the version was unloaded, loaded and unloaded again meanwhile: no crop becomes black."""

    async def unload_twice() -> None:
        state, backend = local_state(tmp_path, "a", "b", workers=1)
        backend.start()
        await backend.wait_until_warm()
        memory = SharedMemory()
        models = WorkerModels(backend, memory, 1)
        models.prepare(backend.engines.engines.values())
        models.refresh()
        backend.on_change = models.refresh
        backend.engines.prepare, backend.engines.on_closed = models.prepare, models.engine_closed
        [(engine, update)] = [pair for pair in models.of_worker(0) if pair[0].key.name == "a"]
        slots = Slots(memory.fd, update.slots, update.model.preprocessing.crop)
        slots.crops[0][:] = 77
        closed = asyncio.Event()
        backend.engines.hold(engine)
        for change in (backend.unload, backend.load, backend.unload):
            await change("a")

        def engine_closed(engine: Engine) -> None:
            models.engine_closed(engine)
            closed.set()

        backend.engines.on_closed = engine_closed
        await closed.wait()  # the engine that was loaded in between
        assert slots.crops[0].min() == 77
        closed.clear()
        backend.engines.release(engine)
        await closed.wait()
        assert slots.crops[0].max() == 0  # returned to the system
        await state.close()

    asyncio.run(unload_twice())


def test_model_that_workers_have_no_memory_for_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots are allocated before the models are replaced."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    write_version(tmp_path, "pets", 1)
    with serving(Settings(model="auto", model_repository=tmp_path, workers=1)) as server:
        before = server.engines.engines
        write_version(tmp_path, "fruits", 1)
        monkeypatch.setattr(os, "posix_fallocate", fail)
        load = server.service.backend.load("fruits")
        with pytest.raises(Exception, match="nothing has changed: cannot allocate"):
            asyncio.run_coroutine_threadsafe(load, server.engines.loop.result()).result(60)
        assert server.engines.engines is before
        image = encode(make_image(64, 64))
        assert server.client.post("/predict", files=files(image)).json()["model"] == "pets"


def test_shadow_whose_probabilities_are_not_finite_has_failed(tmp_path: Path) -> None:
    """A client would get an error for them: they do not agree."""
    for version in (1, 2):
        write_version(tmp_path, "pets", version)
    (tmp_path / "pets/traffic.yaml").write_text("shadow: {version: 2, percent: 100}\n")
    with serving(Settings(model="auto", model_repository=tmp_path)) as server:
        shadow = server.runtimes[1]
        run = shadow.run

        def run_broken(crops: Sequence[Crop], k: int) -> TopKResult:
            result = run(crops, k)
            return replace(result, probabilities=np.full_like(result.probabilities, np.nan))

        shadow.run = run_broken  # type: ignore[assignment]
        assert server.client.post("/predict", files=files(encode(make_image(64, 64)))).status_code == 200
        server.wait_for(lambda: server.metric("inference_shadow_images_total", outcome="failed") == 1)
        assert server.metric("inference_shadow_images_total", outcome="agree") == 0
