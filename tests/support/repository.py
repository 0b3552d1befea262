"""A server with several models, whose labels say which version of which model has answered."""

import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
import tritonclient.grpc

from resnet_service.images import Preprocessing
from resnet_service.models import ModelVersion, checkpoint
from resnet_service.models.networks import NETWORKS
from tests.support.http import files
from tests.support.server import GatedRuntime, Running
from tests.support.v2 import IMAGES, INPUTS, json_input

ADMIN, USER = "administrator-0123456789", "predictions-0123456789"
_CLASSES = 4


def write_version(repository: Path, name: str, version: int, *, side: int = 32) -> Path:
    """Write a LeNet for crops of `side` pixels, whose labels are NAME-VERSION-CLASS; return its file."""
    path = repository / name / str(version) / "model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = tuple(f"{name}-{version}-{number}" for number in range(_CLASSES))
    preprocessing = Preprocessing(side, side, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    checkpoint.save_checkpoint(checkpoint.Checkpoint("lenet", labels, preprocessing, _state()), path)
    return path


@cache
def _state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(NETWORKS["lenet"](_CLASSES).state_dict())


class Repository:
    """The folder of a server with the models `fruits` (1 and 2) and `pets` (1, with larger crops).

    repository = Repository(tmp_path)
    with serving(Settings(model_repository=tmp_path, api_keys=KEYS, ...), grpc=True) as server: ...
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def restore(self) -> None:
        """Write the two models, and remove all others."""
        for entry in self.folder.iterdir():
            shutil.rmtree(entry)
        for name, version, side in (("fruits", 1, 32), ("fruits", 2, 32), ("pets", 1, 96)):
            write_version(self.folder, name, version, side=side)

    def split(self, name: str, content: str) -> None:
        """Write the traffic.yaml of a model."""
        (self.folder / name / "traffic.yaml").write_text(content, encoding="utf-8")


def post(server: Running, path: str, key: str = ADMIN, **body: Any) -> httpx.Response:
    return server.client.post(path, headers={"X-API-Key": key}, timeout=60, **body)


def load(server: Running, name: str) -> httpx.Response:
    return post(server, f"/v2/repository/models/{name}/load")


def unload(server: Running, name: str) -> httpx.Response:
    return post(server, f"/v2/repository/models/{name}/unload")


def index(server: Running) -> dict[tuple[str, str], str]:
    """Return the states of all versions."""
    models = post(server, "/v2/repository/index").json()
    return {(model["name"], model["version"]): model["state"] for model in models}


def predict(server: Running, image: bytes, **query: str) -> httpx.Response:
    return server.client.post("/predict", params=query, files=files(image))


def answered(response: httpx.Response) -> str:
    """Return the model and the version that have answered, as the response and its labels say."""
    assert response.status_code == 200, response.text
    body = response.json()
    predictions = (body["results"][0] if "results" in body else body)["predictions"]
    answer = f"{body['model']}-{body['version']}"
    assert all(row["label"].startswith(f"{answer}-") for row in predictions)
    return answer


def answered_v2(response: httpx.Response) -> str:
    """Return the same for a response of the Open Inference Protocol."""
    assert response.status_code == 200, response.text
    body = response.json()
    answer = f"{body['model_name']}-{body['model_version']}"
    [labels] = [output["data"] for output in body["outputs"] if output["name"] == "label"]
    assert all(label.startswith(f"{answer}-") for label in labels)
    return answer


def infer(server: Running, path: str) -> httpx.Response:
    return server.client.post(f"/v2/models/{path}/infer", json={"inputs": [json_input()]})


def infer_rpc(triton: Any, name: str, version: str = "", images: Sequence[bytes] = IMAGES) -> str:
    """Return the same for a call of gRPC, by default with three images."""
    datatype, values = INPUTS["image"][0], np.array(images, object)
    tensor = tritonclient.grpc.InferInput("image", list(values.shape), datatype).set_data_from_numpy(values)
    result = triton.infer(name, [tensor], model_version=version)
    response = result.get_response()
    answer = f"{response.model_name}-{response.model_version}"
    assert all(label.decode().startswith(f"{answer}-") for label in result.as_numpy("label").ravel())
    return answer


def statistics(server: Running) -> dict[str, tuple[int, int, int]]:
    """Return the images, and the requests with and without a result, of each version."""
    rows = server.client.get("/v2/models/stats").json()["model_stats"]
    return {
        f"{row['name']}-{row['version']}": (
            row["inference_count"],
            row["inference_stats"]["success"]["count"],
            row["inference_stats"]["fail"]["count"],
        )
        for row in rows
    }


def runtime_of(server: Running, name: str, version: str = "1") -> GatedRuntime:
    """Return the runtime of a version."""
    [runtime] = server.engines.find(ModelVersion(name, version)).runtimes
    assert isinstance(runtime, GatedRuntime)
    return runtime
