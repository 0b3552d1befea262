"""Several models and versions: which of them answers, and how they are loaded and unloaded."""

from collections.abc import Iterator
from shutil import rmtree
from typing import Any

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from resnet_service.models import ModelVersion
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
    predict,
    statistics,
    unload,
    write_version,
)
from tests.support.server import Running, only_once
from tests.support.v2 import IMAGES, error_message

pytestmark = only_once


@pytest.fixture
def server(models_server: Running) -> Running:
    """Return a server with the models of `Repository`."""
    return models_server


@pytest.fixture
def triton(server: Running) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        yield client


def series(server: Running, name: str, model: str) -> int:
    """Return the number of series of a metric that a model has."""
    lines = server.client.get("/metrics").text.splitlines()
    return sum(line.startswith(f"{name}{{") and f'model="{model}"' in line for line in lines)


def test_each_route_answers_by_model_and_version(server: Running, triton: Any, jpeg: bytes) -> None:
    """Without a model the first one answers, and without a version the latest."""
    cases = [
        ("fruits-2", {}),
        ("fruits-2", {"model": "fruits"}),
        ("fruits-1", {"model": "fruits", "version": "1"}),
        ("fruits-1", {"version": "1"}),
        ("pets-1", {"model": "pets"}),
    ]
    for expected, query in cases:
        assert answered(predict(server, jpeg, **query)) == expected
        assert (
            answered(server.client.post("/predict/batch", params=query, files=files(jpeg, jpeg))) == expected
        )
    for name, version, expected in (
        ("fruits", "", "fruits-2"),
        ("fruits", "1", "fruits-1"),
        ("pets", "", "pets-1"),
    ):
        assert infer_rpc(triton, name, version) == expected
        paths = [f"{name}/versions/{version}"] if version else [name]
        for path in paths:
            assert answered_v2(infer(server, path)) == expected


def test_unknown_models_and_versions_are_404_with_the_known_ones(
    server: Running, triton: Any, jpeg: bytes
) -> None:
    """The message names what the server has; the form field `model` gets a hint."""
    unknown = "unknown model 'x'; the server has 'fruits', 'pets'"
    for path in ("/predict", "/predict/batch"):
        response = server.client.post(path, params={"model": "x"}, files=files(jpeg))
        assert (response.status_code, response.json()["detail"]) == (404, unknown)
    response = predict(server, jpeg, version="9")
    assert (response.status_code, response.json()["detail"]) == (
        404,
        "unknown version '9'; the model has versions 1, 2",
    )
    assert error_message(infer(server, "x"), 404) == unknown
    assert "has version '1'" in error_message(infer(server, "pets/versions/2"), 404)
    with pytest.raises(InferenceServerException, match="unknown model 'x'") as error:
        infer_rpc(triton, "x")
    assert error.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException, match="unknown version '2'"):
        infer_rpc(triton, "pets", "2")
    response = server.client.post("/predict", data={"model": "pets"}, files=files(jpeg))
    assert response.status_code == 422
    assert "/predict?model=NAME" in response.json()["detail"]


def test_statistics_of_each_version_add_up_to_its_requests(server: Running, triton: Any, jpeg: bytes) -> None:
    """Those of versions that are unloaded stay, and go on when they are loaded again."""
    before = statistics(server)
    for _ in range(3):
        predict(server, jpeg, version="1")
    server.client.post("/predict/batch", params={"model": "pets"}, files=files(jpeg, jpeg))
    infer_rpc(triton, "fruits")
    infer(server, "pets")
    predict(server, b"no image", model="pets")
    expected = {"fruits-1": (3, 3, 0), "fruits-2": (len(IMAGES), 1, 0), "pets-1": (2 + len(IMAGES), 2, 1)}
    assert difference(statistics(server), before) == expected
    assert unload(server, "pets").status_code == 200
    assert difference(statistics(server), before) == expected
    assert load(server, "pets").status_code == 200
    predict(server, jpeg, model="pets")
    assert difference(statistics(server), before)["pets-1"] == (3 + len(IMAGES), 3, 1)


def difference(
    after: dict[str, tuple[int, int, int]], before: dict[str, tuple[int, int, int]]
) -> dict[str, tuple[int, ...]]:
    changes = {
        name: tuple(new - old for new, old in zip(counts, before.get(name, (0, 0, 0)), strict=True))
        for name, counts in after.items()
    }
    return {name: counts for name, counts in changes.items() if any(counts)}


def test_unloaded_model_is_404_and_the_next_one_is_the_default(
    server: Running, triton: Any, jpeg: bytes
) -> None:
    """It stays in the index, its gauges vanish and its counters stay; the last model cannot be unloaded."""
    assert answered(predict(server, jpeg, model="fruits")) == "fruits-2"
    assert series(server, "inference_queue_depth", "fruits") == 4
    triton.unload_model("fruits", headers={"x-api-key": ADMIN})
    server.wait_for(lambda: predict(server, jpeg, model="fruits").status_code == 404)
    assert answered(predict(server, jpeg)) == "pets-1"
    assert error_message(infer(server, "fruits"), 404)
    assert index(server) == {("pets", "1"): "READY", ("fruits", ""): "UNAVAILABLE"}
    gauges = ("queue_depth", "queue_wait_seconds", "queue_wait_limit_seconds", "requests_waiting")
    for name in (*gauges, "largest_batch", "device_streams", "model_info"):
        assert (name, series(server, f"inference_{name}", "fruits")) == (name, 0)
        assert (name, series(server, f"inference_{name}", "pets") > 0) == (name, True)
    assert series(server, "inference_images_total", "fruits") == 12
    assert series(server, "inference_batch_size_count", "fruits") == 2
    response = unload(server, "pets")
    assert "only model" in error_message(response, 409)
    assert error_message(unload(server, "fruits"), 404)


def test_versions_follow_the_folder_at_each_load(
    server: Running, repository: Repository, jpeg: bytes
) -> None:
    """A new version serves after a load, one whose folder is gone does not, and other models stay."""
    pets = server.engines.find(ModelVersion("pets", "1"))
    write_version(repository.folder, "fruits", 10)
    assert predict(server, jpeg, version="10").status_code == 404
    assert load(server, "fruits").status_code == 200
    assert answered(predict(server, jpeg)) == "fruits-10"
    assert answered(predict(server, jpeg, version="2")) == "fruits-2"
    rmtree(repository.folder / "fruits" / "10")
    rmtree(repository.folder / "fruits" / "1")
    assert load(server, "fruits").status_code == 200
    assert answered(predict(server, jpeg)) == "fruits-2"
    assert predict(server, jpeg, version="1").status_code == 404
    assert series(server, "inference_queue_depth", "fruits") == 2
    write_version(repository.folder, "birds", 1)
    assert index(server)["birds", ""] == "UNAVAILABLE"
    assert load(server, "birds").status_code == 200
    assert answered(predict(server, jpeg, model="birds")) == "birds-1"
    assert server.engines.find(ModelVersion("pets", "1")) is pets
