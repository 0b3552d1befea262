"""The prediction log of a running service: what requests leave there, and what they do not notice."""

import shutil
import time
from pathlib import Path
from typing import Any, Final

import grpc
import httpx
import pyarrow.parquet as pq
import pytest

from resnet_service.errors import InvalidAPIKeysError, MissingDependencyError, StorageError
from resnet_service.server.state import build_app_state
from resnet_service.settings import Settings
from tests.support import rpc, v2
from tests.support.images import encode, make_image
from tests.support.server import Running, only_once, serving

pytestmark = only_once

LOGGED, UNLOGGED = "logged-key-0123456789", "unlogged-key-0123456789"
KEYS: Final = f"{LOGGED} name=mobile, {UNLOGGED} name=private prediction_log=off"


def log_settings(folder: Path | str, **values: Any) -> Settings:
    return Settings(model="cifar10", prediction_log=str(folder), **values)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows in the order of their time."""
    table = pq.read_table(folder).sort_by("time")
    result: list[dict[str, Any]] = table.to_pylist()
    return result


def classify(server: Running, image: bytes, request_id: str = "r", key: str | None = None) -> dict[str, Any]:
    headers = {"X-Request-ID": request_id, **({} if key is None else {"X-API-Key": key})}
    response = server.client.post("/predict", files={"file": image}, headers=headers)
    assert response.status_code == 200
    content: dict[str, Any] = response.json()
    return content


@pytest.mark.parametrize("workers", [0, 2])
def test_all_ways_to_classify_an_image_are_logged(tmp_path: Path, workers: int) -> None:
    """With the bytes of the upload; tensors, embeddings and images that fail are not logged."""
    settings = log_settings(tmp_path, prediction_log_images=True, api_keys=KEYS, workers=workers)
    images = [encode(make_image(seed=seed)) for seed in range(6)]
    key = {"X-API-Key": LOGGED}
    with serving(settings, grpc=True) as server:
        predicted = classify(server, images[0], "single", LOGGED)
        uploads = [("file", image) for image in (images[1], b"nothing", images[2])]
        headers = {**key, "X-Request-ID": "batch"}
        assert server.client.post("/predict/batch", files=uploads, headers=headers).status_code == 200
        message = {"inputs": [v2.json_input(shape=[1], data=v2.base64_strings(images[3]))]}
        headers = {**key, "X-Request-ID": "v2"}
        assert server.client.post(v2.INFER_PATH, json=message, headers=headers).status_code == 200
        message = {"inputs": [v2.json_input(shape=[1], data=v2.base64_strings(images[4]))]}
        with grpc.insecure_channel(server.grpc_url) as channel:
            call: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            metadata = (("x-api-key", LOGGED), ("x-request-id", "grpc"))
            call(rpc.to_protobuf(message).SerializeToString(), metadata=metadata, timeout=30)
        message = {"inputs": [v2.json_input("pixels")]}
        assert server.client.post(v2.INFER_PATH, json=message, headers=key).status_code == 200
        assert server.client.post("/embed", files={"file": images[5]}, headers=key).status_code == 200
        classify(server, images[5], "private", UNLOGGED)
    logged = {row["image"]: row for row in rows(tmp_path)}
    requests = {
        images[0]: "single",
        images[1]: "batch",
        images[2]: "batch",
        images[3]: "v2",
        images[4]: "grpc",
    }
    assert {image: row["request_id"] for image, row in logged.items()} == requests
    assert {row["key"] for row in logged.values()} == {"mobile"}
    row = logged[images[0]]
    classes = [{**top, "probability": pytest.approx(top["probability"], abs=1e-6)} for top in row["top_k"]]
    assert classes == predicted["predictions"]
    assert (row["class_id"], row["label"]) == (row["top_k"][0]["class_id"], row["top_k"][0]["label"])
    assert (row["model"], row["version"], row["format"]) == ("cifar10", predicted["version"], "jpeg")


def test_share_of_zero_logs_only_uncertain_predictions(tmp_path: Path) -> None:
    images = [encode(make_image(seed=seed)) for seed in range(8)]
    settings = log_settings(tmp_path, prediction_log_share=0, prediction_log_below=0.5)
    with serving(settings) as server:
        best = [classify(server, image)["predictions"][0]["probability"] for image in images]
        server.client.post("/predict", files={"file": b"nothing"})
    expected = [probability for probability in best if probability < 0.5]
    assert 0 < len(expected) < len(images)
    assert [row["probability"] for row in rows(tmp_path)] == pytest.approx(expected, abs=1e-6)


def test_requests_succeed_while_the_log_cannot_be_written(tmp_path: Path, jpeg: bytes) -> None:
    """Its folder is replaced by a file while the service runs; it works again when the folder is back."""
    folder = tmp_path / "log"
    with serving(log_settings(folder, prediction_log_interval_s=1)) as server:

        def count(name: str, **labels: str) -> float:
            return server.metric(f"inference_prediction_log_{name}_total", **labels)

        shutil.rmtree(folder)
        folder.touch()
        classify(server, jpeg)
        server.wait_for(lambda: count("dropped", reason="write_failed") == 1)
        folder.unlink()
        classify(server, jpeg)
        server.wait_for(lambda: count("rows") == 1)
        assert server.metric("inference_prediction_log_bytes") == sum(
            file.stat().st_size for file in folder.iterdir()
        )


def test_two_workers_share_the_rate_and_write_files_of_their_own(tmp_path: Path, jpeg: bytes) -> None:
    """Each prediction is there once, whichever worker has answered, or is counted as dropped."""
    with serving(log_settings(tmp_path, workers=2, prediction_log_rate=0.1)) as server:
        started = time.monotonic()
        for number in range(24):  # a connection each: the system chooses the worker
            headers = {"X-Request-ID": f"r{number}"}
            response = httpx.post(f"{server.url}/predict", files={"file": jpeg}, headers=headers, timeout=30)
            assert response.status_code == 200
        most = 2 + 0.1 * (time.monotonic() - started)
        dropped = server.metric("inference_prediction_log_dropped_total", reason="rate")
    logged = [row["request_id"] for row in rows(tmp_path)]
    assert len(logged) == len(set(logged))
    assert 2 <= len(logged) <= most
    assert len(logged) + dropped == 24
    assert len({file.name.split("-")[2] for file in tmp_path.iterdir()}) == 2


def test_folder_that_cannot_be_written_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"prediction log cannot be written to .*: Not a directory"):
        build_app_state(log_settings(tmp_path / "file/log"))
    with pytest.raises(StorageError, match="Unrecognized filesystem type"):
        build_app_state(log_settings("nosuch://bucket/log"))


def test_opting_out_without_effect_is_an_error() -> None:
    """No key is read for a public scope, so that its option would be ignored."""
    with pytest.raises(InvalidAPIKeysError, match="private has prediction_log=off, which has no effect"):
        build_app_state(Settings(model="cifar10", api_keys=KEYS, public_scopes="predict"))


def test_missing_extra_ends_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a model is loaded."""
    monkeypatch.setattr("resnet_service.prediction_log.find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match="needs PyArrow: make install EXTRAS=parquet"):
        build_app_state(log_settings(tmp_path))
