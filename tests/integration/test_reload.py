"""Replacing the model while it serves: nothing is lost, and a model that is no good changes nothing."""

import gc
import signal
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch

from resnet_service.errors import InferenceError
from resnet_service.inference.engine import Engine
from resnet_service.models import checkpoint
from resnet_service.settings import Settings
from tests.support import REPOSITORY
from tests.support.processes import started, until
from tests.support.server import Running, serving

BUNDLED = REPOSITORY / "service" / "resnet_service" / "models" / "bundled" / "cifar10.safetensors"
KEY = "administrator-0123456789"
ADMIN = {"Authorization": f"Bearer {KEY}"}


def write_model(path: Path, prefix: str = "", scale: float = 1.0) -> None:
    """Write the bundled model with other labels and, where `scale` is no number, broken weights."""
    model = checkpoint.load_checkpoint(BUNDLED)
    labels = tuple(f"{prefix}{label}" for label in model.labels)
    state = {
        name: tensor * torch.tensor(scale, dtype=tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in model.state.items()
    }
    checkpoint.save_checkpoint(replace(model, labels=labels, state=state), path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's file that a test may replace."""
    path = tmp_path / "model.safetensors"
    write_model(path)
    return path


@pytest.fixture
def reloadable(model: Path) -> Iterator[Running]:
    """A server that answers from that file, and its administrator's key."""
    keys = f"{KEY} admin predict metrics"
    with serving(
        Settings(model=str(model), api_keys=keys, public_scopes="predict,metrics,docs,bench")
    ) as running:
        yield running


def first_label(server: Running, image: bytes) -> str:
    answer = server.client.post("/predict", files={"file": image})
    assert answer.status_code == 200
    label: str = answer.json()["predictions"][0]["label"]
    return label


def test_a_new_model_takes_the_place_of_the_old(reloadable: Running, model: Path, jpeg: bytes) -> None:
    """After a reload the new file answers, the metrics tell of it, and the old one's memory is free."""
    before = first_label(reloadable, jpeg)
    old = weakref.ref(reloadable.service.engine)
    write_model(model, "new-")
    answer = reloadable.client.post("/reload", headers=ADMIN)
    assert answer.status_code == 200
    assert answer.json()["labels"] == 10
    assert first_label(reloadable, jpeg) == f"new-{before}"
    assert reloadable.metric("inference_ready") == 1
    assert reloadable.metric("inference_queue_limit") == 256
    gc.disable()  # it must not need the collector, which a server's long-lived objects are hidden from
    try:
        reloadable.wait_for(lambda: old() is None)
    finally:
        gc.enable()


def test_no_request_is_lost_in_a_reload(reloadable: Running, model: Path, jpeg: bytes) -> None:
    """Under load, through several reloads, every image is answered, by one of the two models."""
    ended = threading.Event()

    def ask() -> list[int | str]:
        answers: list[int | str] = []
        while not ended.is_set():
            answer = reloadable.client.post("/predict", files={"file": jpeg})
            status = answer.status_code
            answers.append(answer.json()["predictions"][0]["label"] if status == 200 else status)
        return answers

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            for prefix in ("b-", "c-", "d-"):
                write_model(model, prefix)
                assert reloadable.client.post("/reload", headers=ADMIN, timeout=60).status_code == 200
        finally:
            ended.set()
        answers = [answer for each in asking for answer in each.result()]
    assert not [answer for answer in answers if isinstance(answer, int)]
    assert len({str(answer).rpartition("-")[2] for answer in answers}) == 1
    assert any(str(answer).startswith("c-") for answer in answers)


def test_a_request_keeps_to_the_model_it_began_with(reloadable: Running, model: Path, jpeg: bytes) -> None:
    """An image on the device during a reload is answered by the old model, with the old labels."""
    label = first_label(reloadable, jpeg)
    [old] = reloadable.runtimes
    with ThreadPoolExecutor(1) as pool, old.held():
        parts = [("file", (f"{number}.jpg", jpeg)) for number in range(64)]
        waiting = pool.submit(reloadable.client.post, "/predict/batch", files=parts)
        assert old.begun.acquire(timeout=30)
        write_model(model, "new-")
        assert reloadable.client.post("/reload", headers=ADMIN).status_code == 200
        assert first_label(reloadable, jpeg) == f"new-{label}"
        old.release()
        results = waiting.result().json()["results"]
    assert [result["predictions"][0]["label"] for result in results] == [label] * 64


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(b"no checkpoint"), "not a readable checkpoint"),
        (lambda path: path.unlink(), "there is no file"),
        (lambda path: write_model(path, scale=float("nan")), "not numbers"),
    ],
    ids=["broken", "missing", "not numbers"],
)
def test_a_model_that_is_no_good_changes_nothing(
    reloadable: Running, model: Path, jpeg: bytes, make: object, words: str
) -> None:
    """A broken file, none, or one whose answers are no numbers: the old model goes on, and 500 says why."""
    label = first_label(reloadable, jpeg)
    assert callable(make)
    make(model)
    answer = reloadable.client.post("/reload", headers=ADMIN)
    assert answer.status_code == 500
    assert answer.json()["type"].endswith("reload-failed")
    assert "the old model goes on" in answer.json()["detail"]
    assert words in answer.json()["detail"]
    assert first_label(reloadable, jpeg) == label
    assert reloadable.client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (InferenceError("the kernels do not fit"), "the kernels do not fit"),
        (ValueError("secret"), "log says why"),
    ],
)
def test_a_model_that_fails_its_warm_up_changes_nothing(
    reloadable: Running, jpeg: bytes, error: Exception, words: str
) -> None:
    """A model that loads and cannot run never gets a request; an unknown error's words stay inside."""
    load_engine = reloadable.service.load_engine

    def broken() -> Engine:
        engine = load_engine()
        reloadable.runtimes[-1].error = error
        return engine

    reloadable.service.load_engine = broken
    answer = reloadable.client.post("/reload", headers=ADMIN)
    assert answer.status_code == 500
    assert words in answer.json()["detail"]
    assert "secret" not in answer.text
    assert first_label(reloadable, jpeg)
    assert reloadable.metric("inference_ready") == 1


def test_one_reload_at_a_time(reloadable: Running) -> None:
    """While a model is being loaded another reload gets 409."""
    loading, go_on = threading.Event(), threading.Event()
    load_engine = reloadable.service.load_engine

    def slow() -> Engine:
        loading.set()
        assert go_on.wait(30)
        return load_engine()

    reloadable.service.load_engine = slow
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(reloadable.client.post, "/reload", headers=ADMIN)
        assert loading.wait(30)
        assert reloadable.client.post("/reload", headers=ADMIN).status_code == 409
        go_on.set()
        assert first.result().status_code == 200


def test_sighup_reloads_the_model_and_the_keys(model: Path, tmp_path: Path, jpeg: bytes) -> None:
    """The signal that daemons know: a new model and new keys, or the old ones and the reason in the log."""
    keys = tmp_path / "keys"
    keys.write_text("the-first-key-of-all\n")
    with started("--model", str(model), "--api-keys-file", str(keys)) as (process, log, url):

        def ask(key: str) -> httpx.Response:
            return httpx.post(f"{url}/predict", files={"file": jpeg}, headers={"X-API-Key": key})

        label = ask("the-first-key-of-all").json()["predictions"][0]["label"]
        write_model(model, "new-")
        keys.write_text("the-second-key-of-all\n")
        process.send_signal(signal.SIGHUP)
        until(log, "reloaded")
        assert ask("the-first-key-of-all").status_code == 401
        assert ask("the-second-key-of-all").json()["predictions"][0]["label"] == f"new-{label}"
        keys.write_text("short\n")
        process.send_signal(signal.SIGHUP)
        assert "fewer than 16" in until(log, "not reloaded")["reason"]
        assert ask("the-second-key-of-all").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
