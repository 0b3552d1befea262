"""POST /explain on a real server: the image with the heat, the choice of the class, limits and errors."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from resnet_service.explanations import Explainer, Explanation
from resnet_service.images import decode_image
from resnet_service.images.png import PNG_SIGNATURE
from resnet_service.models import load_model
from resnet_service.settings import Settings
from tests.support import PHOTOGRAPHS
from tests.support.http import assert_problem, files
from tests.support.images import encode, make_image
from tests.support.models import write_checkpoint
from tests.support.server import Running, in_this_process, serving

USER, EXPLAINER, ADMIN = "predicts-0123456789", "explains-0123456789", "everything-0123456789"
DOG = (PHOTOGRAPHS / "dog.jpg").read_bytes()


@pytest.fixture(scope="module")
def imagenet_server() -> Iterator[Running]:
    """Yield a server with efficientnet_lite0."""
    with serving(Settings(model="efficientnet_lite0")) as running:
        yield running


class Gate:
    """Holds explanations until `release`; `begun` counts those that have started."""

    def __init__(self, explain: Callable[..., Explanation]) -> None:
        self.begun = threading.Semaphore(0)
        self.released = threading.Event()
        self._explain = explain

    def run(self, *arguments: Any) -> Explanation:
        self.begun.release()
        assert self.released.wait(30), "the test did not release the explanation"
        return self._explain(*arguments)


@contextmanager
def held() -> Iterator[Gate]:
    """Hold all explanations from now until `release` or the end of the block."""
    with pytest.MonkeyPatch.context() as patch:
        gate = Gate(Explainer.explain)
        patch.setattr(Explainer, "explain", lambda *arguments: gate.run(*arguments))
        try:
            yield gate
        finally:
            gate.released.set()


def test_image_with_the_heat_is_the_default(imagenet_server: Running) -> None:
    """A form gets a PNG of the size that the model saw, light at the dog, and headers with the class."""
    response = imagenet_server.client.post("/explain", files=files(DOG))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    assert response.content.startswith(PNG_SIGNATURE)
    assert (response.headers["x-class-id"], response.headers["x-label"]) == ("258", "Samoyed")
    assert float(response.headers["x-probability"]) == pytest.approx(0.75, abs=0.05)
    assert (response.headers["x-model"], response.headers["x-model-version"]) == ("efficientnet_lite0", "1")
    preprocessing = load_model("efficientnet_lite0").preprocessing
    heat = decode_image(response.content, replace(preprocessing, resize=preprocessing.crop)).astype(int)
    redness = heat[..., 0] - heat[..., 2]
    assert redness[40:120, 20:80].mean() > redness[40:120, 140:200].mean() + 50  # the face, the hedge


def test_json_has_the_heat_as_numbers(imagenet_server: Running) -> None:
    """`format` or the header Accept selects JSON; the class is that of /predict."""
    response = imagenet_server.client.post("/explain?format=json", files=files(DOG))
    body = response.json()
    assert set(body) == {"class_id", "label", "probability", "heat", "input_size", "model", "version"}
    heat = np.array(body["heat"])
    assert heat.shape == (7, 7)
    assert (heat.max(), heat.min() >= 0, body["input_size"]) == (1, True, 224)
    raw = {"content-type": "image/jpeg", "accept": "application/json"}
    assert imagenet_server.client.post("/explain", content=DOG, headers=raw).json() == body
    best = imagenet_server.client.post("/predict", files=files(DOG)).json()["predictions"][0]
    assert (best["class_id"], best["label"]) == (body["class_id"], body["label"])
    assert best["probability"] == pytest.approx(body["probability"], abs=0.05)


def test_class_can_be_chosen(imagenet_server: Running) -> None:
    """By index or by label, in any case, with the probability of that class."""
    by_id = imagenet_server.client.post("/explain?format=json&class_id=259", files=files(DOG)).json()
    by_label = imagenet_server.client.post("/explain?format=json&label=pomeranian", files=files(DOG)).json()
    assert by_id == by_label
    assert (by_id["class_id"], by_id["label"]) == (259, "Pomeranian")
    assert by_id["probability"] < 0.2


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("label=samoyde", "did you mean 'Samoyed'?"),
        ("class_id=1000", "class_id must be from 0 to 999, got 1000"),
        ("class_id=-1", "class_id"),
        ("class_id=1&label=tench", "exclude each other"),
        ("format=gif", "format"),
        ("opacity=1.5", "opacity"),
        ("opacity=nan", "opacity"),
        ("top_k=3", "unknown parameter 'top_k'"),
        ("classid=3", "did you mean 'class_id'?"),
    ],
)
def test_invalid_parameter_is_named(imagenet_server: Running, query: str, message: str) -> None:
    response = imagenet_server.client.post(f"/explain?{query}", files=files(DOG))
    assert message in assert_problem(response, 422, "invalid-request")


def test_opacity_zero_returns_what_the_model_saw(server: Running, jpeg: bytes) -> None:
    response = server.client.post("/explain?opacity=0", files=files(jpeg))
    preprocessing = load_model("cifar10").preprocessing
    assert (decode_image(response.content, preprocessing) == decode_image(jpeg, preprocessing)).all()


def test_files_that_are_no_image_get_the_errors_of_predict(server: Running, jpeg: bytes) -> None:
    """The same decoder and limits apply, and an unknown model or version is not found."""
    post = server.client.post
    assert_problem(post("/explain", files=files(b"text")), 415, "unsupported-media-type")
    assert_problem(post("/explain", files=files(jpeg[:200])), 422, "invalid-image")
    png = encode(make_image(), "PNG")
    assert post("/explain", files=files(png)).status_code == 200  # decoded in the sandbox
    message = assert_problem(post("/explain", files=files(jpeg, jpeg)), 422, "invalid-request")
    assert message == "expected one image, got 2"
    assert_problem(post("/explain?model=other", files=files(jpeg)), 404, "model-not-found")
    assert_problem(post("/explain?version=7", files=files(jpeg)), 404, "model-not-found")


def test_too_many_requests_get_429_and_predictions_go_on(jpeg: bytes) -> None:
    """At most eight requests run or wait; the others may return later, and /predict is not affected."""
    with serving(Settings(model="cifar10")) as running, held() as gate, ThreadPoolExecutor(20) as pool:
        requests = [pool.submit(running.client.post, "/explain", files=files(jpeg)) for _ in range(20)]
        assert gate.begun.acquire(timeout=20)
        rejected = [request.result() for _, request in zip(range(12), as_completed(requests), strict=False)]
        assert not gate.begun.acquire(blocking=False)  # one at a time
        for response in rejected:
            assert_problem(response, 429, "overloaded")
            assert int(response.headers["retry-after"]) >= 1
        assert running.client.post("/predict", files=files(jpeg)).status_code == 200
        assert running.client.get("/healthz").status_code == 200
        gate.released.set()
        statuses = [request.result().status_code for request in requests]
        assert set(statuses) == {200, 429}
        assert running.client.post("/explain", files=files(jpeg)).status_code == 200


def test_deadline_ends_a_request_that_waits(jpeg: bytes) -> None:
    """A request whose time is over gets 504, although another one is being explained."""
    with serving(Settings(model="cifar10")) as running, ThreadPoolExecutor(1) as pool, held() as gate:
        first = pool.submit(running.client.post, "/explain", files=files(jpeg))
        assert gate.begun.acquire(timeout=20)
        response = running.client.post("/explain?timeout_ms=200", files=files(jpeg))
        assert_problem(response, 504, "deadline-exceeded")
        gate.released.set()
        assert first.result().status_code == 200


def test_keys_need_the_scope(jpeg: bytes) -> None:
    """A key for predictions explains nothing, and one for explanations predicts nothing."""
    keys = f"{USER} predict,{EXPLAINER} explain"
    with serving(Settings(model="cifar10", api_keys=keys)) as running:

        def post(path: str, key: str) -> httpx.Response:
            return running.client.post(path, files=files(jpeg), headers={"X-API-Key": key}, timeout=60)

        assert_problem(running.client.post("/explain", files=files(jpeg)), 401, "unauthorized")
        assert_problem(post("/explain", USER), 403, "forbidden")
        assert post("/predict", EXPLAINER).status_code == 403
        assert post("/explain", EXPLAINER).status_code == 200


def test_reload_replaces_the_network_that_explains(tmp_path: Path, jpeg: bytes) -> None:
    """The network is kept while its version serves, and loaded again when the version is."""
    path = tmp_path / "model.safetensors"
    write_checkpoint(path)
    settings = Settings(model=str(path), api_keys=f"{ADMIN} admin", public_scopes="explain")

    with serving(settings) as running:

        def probability() -> float:
            response = running.client.post("/explain?format=json&class_id=3", files=files(jpeg))
            return float(response.json()["probability"])

        before = probability()
        write_checkpoint(path, scale=0.5)
        assert probability() == before
        assert running.client.post("/reload", headers={"X-API-Key": ADMIN}, timeout=60).status_code == 200
        assert probability() != before


def test_file_with_other_classes_than_those_served_is_reported(tmp_path: Path, jpeg: bytes) -> None:
    """The network is loaded again for the first explanation: its classes must be those that are served."""
    path = tmp_path / "model.safetensors"
    write_checkpoint(path)
    with serving(Settings(model=str(path))) as running:
        write_checkpoint(path, label_prefix="new ")
        response = running.client.post("/explain", files=files(jpeg))
        assert "have changed since its load" in assert_problem(response, 503, "service-unavailable")
        write_checkpoint(path)
        assert running.client.post("/explain", files=files(jpeg)).status_code == 200


def test_onnx_file_has_no_explanation(tmp_path: Path, jpeg: bytes) -> None:
    """The message says which model to use instead, also the second time."""
    pytest.importorskip("onnx", reason="requires the extra onnx")
    from tests.support.onnx import small_graph, write

    path = write(tmp_path / "small.onnx", small_graph())
    with serving(Settings(model=str(path), precision="fp32")) as running:
        for _ in range(2):
            response = running.client.post("/explain", files=files(jpeg))
            message = assert_problem(response, 501, "unsupported-model")
            assert "use the model that it was exported from" in message


@in_this_process
def test_missing_extra_is_named(server: Running, jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without captum, the response says how to install it."""
    monkeypatch.setattr("resnet_service.explanations.find_spec", lambda _: None)
    response = server.client.post("/explain", files=files(jpeg))
    assert "make install EXTRAS=explain" in assert_problem(response, 501, "missing-dependency")


def test_duration_is_recorded_and_images_are_not(server: Running, jpeg: bytes) -> None:
    """/explain has its own series of durations, and does not count as a prediction."""
    images = server.metric("inference_images_total", outcome="ok")
    duration = {"route": "/explain", "status": "200"}
    before = server.metric("inference_request_seconds_count", **duration)
    assert server.client.post("/explain", files=files(jpeg)).status_code == 200
    server.wait_for(lambda: server.metric("inference_request_seconds_count", **duration) == before + 1)
    assert server.metric("inference_images_total", outcome="ok") == images
