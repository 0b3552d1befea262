"""A real server with an ONNX file as its model."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from resnet_service.settings import Settings
from tests.support.images import encode, make_image
from tests.support.server import Running, serving

pytest.importorskip("onnx", reason="requires the extra onnx")
pytest.importorskip("onnxruntime", reason="requires the extra onnx")

from tests.support.onnx import small_graph, write


@pytest.fixture(params=["openvino", "onnxruntime"])
def runtime(request: pytest.FixtureRequest) -> str:
    """Return each of the runtimes of ONNX files."""
    return str(request.param)


@pytest.fixture
def onnx_server(tmp_path: Path, runtime: str) -> Iterator[Running]:
    """Yield a server with a small ONNX file."""
    path = write(tmp_path / "small.onnx", small_graph())
    with serving(Settings(model=str(path), runtime=runtime, precision="fp32")) as running:
        yield running


def test_onnx_file_is_served(onnx_server: Running, runtime: str) -> None:
    """Its labels are in the responses, /info names its runtime, and batches are classified."""
    assert onnx_server.runtime.name == runtime
    jpeg = encode(make_image())
    response = onnx_server.client.post("/predict", files={"file": jpeg})
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["model"] == "small"
    assert {prediction["label"] for prediction in body["predictions"]} == {"red", "green"}
    assert sum(prediction["probability"] for prediction in body["predictions"]) == pytest.approx(1)
    files = [("file", (f"{number}.jpg", jpeg)) for number in range(3)]
    response = onnx_server.client.post("/predict/batch", files=files)
    assert response.status_code == 200, response.text
    assert onnx_server.client.get("/info").json()["source"] == "small.onnx"
