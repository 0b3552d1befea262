"""ONNX files of others as models: what is read from them and from a JSON file, and what is rejected."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resnet_service.errors import (
    DeviceUnavailableError,
    MissingDependencyError,
    ModelLoadError,
    UnsupportedModelError,
)
from resnet_service.images import Crop
from resnet_service.models import load_model
from resnet_service.runtimes.selection import RuntimeName, create_runtimes
from tests.support.runtimes import CPU, create_runtime, probabilities

onnx = pytest.importorskip("onnx", reason="requires the extra onnx")
pytest.importorskip("onnxruntime", reason="requires the extra onnx")

from tests.support.onnx import DESCRIPTION, PREPROCESSING, SIZE, small_graph, write  # noqa: E402

RUNTIMES: list[RuntimeName] = ["openvino", "onnxruntime"]


@pytest.fixture(scope="module")
def crops() -> list[Crop]:
    """Return random crops."""
    return list(np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8))


def expected(crops: list[Crop]) -> torch.Tensor:
    """Return the probabilities that `small_graph` stands for."""
    mean, std = torch.tensor(PREPROCESSING["mean"]), torch.tensor(PREPROCESSING["std"])
    pixels = torch.from_numpy(np.stack(crops)).float() / 255
    return ((pixels - mean) / std).mean((1, 2))[:, :2].softmax(1)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image": (1, 3, SIZE, SIZE), "output": (1, 2)},
        {"image": (2, 3, SIZE, SIZE), "output": (2, 2)},
        {"image": ("N", 3, "H", "W")},
        {"output": ("N", "classes")},
        {"opset": 12},
    ],
    ids=["variable batch", "batch of 1", "batch of 2", "variable size", "unknown classes", "old opset"],
)
def test_graph_is_run_with_the_preprocessing_beside_it(
    tmp_path: Path, crops: list[Crop], runtime: RuntimeName, changes: dict[str, Any]
) -> None:
    """Normalization and softmax are added, and the size of the batch becomes variable."""
    model = load_model(str(write(tmp_path / "small.onnx", small_graph(**changes))))
    assert (model.name, model.labels, model.source) == ("small", ("red", "green"), "small.onnx")
    executor = create_runtime(model, runtime, "fp32")
    for count in (1, 3):
        actual = probabilities(executor, crops[:count], classes=2)
        torch.testing.assert_close(actual, expected(crops)[:count], rtol=0, atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_probabilities_get_no_second_softmax(tmp_path: Path, crops: list[Crop], runtime: RuntimeName) -> None:
    description = {**DESCRIPTION, "output": "probabilities"}
    model = load_model(str(write(tmp_path / "small.onnx", small_graph(softmax=True), description)))
    actual = probabilities(create_runtime(model, runtime, "fp32"), crops, classes=2)
    torch.testing.assert_close(actual, expected(crops), rtol=0, atol=1e-5)


def test_json_file_has_priority_over_the_metadata(tmp_path: Path) -> None:
    """A key of the metadata counts if the JSON file does not have it."""
    proto = small_graph()
    metadata = {f"resnet-service.{key}": json.dumps(value) for key, value in DESCRIPTION.items()}
    onnx.helper.set_model_props(proto, metadata)
    path = write(tmp_path / "small.onnx", proto, {"labels": ["rot", "grün"]})
    model = load_model(str(path))
    assert model.labels == ("rot", "grün")
    assert model.preprocessing.resize == PREPROCESSING["resize"]


def test_operations_are_counted(tmp_path: Path) -> None:
    """The product of [N, 3] and [3, 2] has 6 multiply-adds for one image."""
    assert load_model(str(write(tmp_path / "small.onnx", small_graph()))).operations == 12


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": ("N", SIZE, SIZE, 3)}, r"input has the shape \[N, 32, 32, 3\], not \[N, 3, 32, 32\]"),
        ({"image": ("N", 3, 48, 48)}, r"\[N, 3, 48, 48\], not \[N, 3, 32, 32\]"),
        ({"image": ("N", 3 * SIZE * SIZE)}, r"input has the shape \[N, 3072\]"),
        ({"image_type": 10}, "input must be float32, not float16"),
        ({"image_type": 2}, "input must be float32, not uint8"),
        ({"reshape": (-1, 1, 3)}, r"output has the shape \[2, 1, 2\], not \[N, 2\]"),
        ({"classes": 3, "output": ("N", 3)}, "outputs 3 classes but has 2 labels"),
        ({"reshape": (1, 3), "image": (1, 3, SIZE, SIZE)}, "only with batches of 1"),
        ({"reshape": (1, -1), "image": (1, 3, SIZE, SIZE)}, "only with batches of 1"),
        ({"reshape": (4, 3), "image": (4, 3, SIZE, SIZE)}, "only with batches of 4"),
        ({"opset": 99}, "uses opset 99 .* update the package onnx"),
        ({"opset": 6}, "uses opset 6 .* export it with another opset"),
    ],
    ids=str,
)
def test_unsupported_graph_is_rejected(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    """The message says what the file contains and what it should contain."""
    path = write(tmp_path / "small.onnx", small_graph(**changes))
    with pytest.raises(ModelLoadError, match=reason):
        load_model(str(path))


def test_second_output_is_rejected(tmp_path: Path) -> None:
    proto = small_graph()
    proto.graph.output.append(onnx.helper.make_tensor_value_info("logits", 1, ("N", 2)))
    with pytest.raises(ModelLoadError, match="one output, and has 2 outputs: output, logits"):
        load_model(str(write(tmp_path / "small.onnx", proto)))


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ({}, r"needs labels and preprocessing: .*small.json does not exist\. Write .*\"labels\""),
        ({"labels": ["a", "b"]}, "needs preprocessing: .*small.json does not contain"),
        ({**DESCRIPTION, "labels": [1, 2]}, r"labels.0 in .* is invalid"),
        ({**DESCRIPTION, "output": "softmax"}, "output in .* is invalid: .*'logits' or 'probabilities'"),
        ({**DESCRIPTION, "classes": 2}, "classes in .* is invalid"),
        ({**DESCRIPTION, "preprocessing": {**PREPROCESSING, "resize": 2}}, "need 0 < crop <= resize"),
    ],
    ids=["none", "labels only", "label types", "output", "unknown key", "value"],
)
def test_incomplete_description_is_rejected(tmp_path: Path, description: dict[str, Any], reason: str) -> None:
    """The message names the file and the key, and what is missing comes with an example."""
    with pytest.raises(ModelLoadError, match=reason):
        load_model(str(write(tmp_path / "small.onnx", small_graph(), description)))


@pytest.mark.parametrize(("text", "reason"), [("{", "is not JSON"), ("[1]", "is not a JSON object")])
def test_damaged_json_file_is_rejected(tmp_path: Path, text: str, reason: str) -> None:
    path = write(tmp_path / "small.onnx", small_graph())
    path.with_suffix(".json").write_text(text)
    with pytest.raises(ModelLoadError, match=f"small.json {reason}"):
        load_model(str(path))


@pytest.mark.parametrize(
    "content", [b"", b"no protocol buffer", b"\x08\x08"], ids=["empty", "text", "no graph"]
)
def test_damaged_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "small.onnx", small_graph())
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"small\.onnx is not a"):
        load_model(str(path))


def test_truncated_or_invalid_file_is_rejected(tmp_path: Path) -> None:
    """A file that was not copied completely, and a graph that uses a value that nothing computes."""
    path = write(tmp_path / "small.onnx", small_graph())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelLoadError, match=r"small\.onnx is not a"):
        load_model(str(path))
    proto = small_graph()
    proto.graph.node[1].input[0] = "nothing"
    with pytest.raises(ModelLoadError, match="not a valid ONNX file"):
        load_model(str(write(path, proto)))


def test_missing_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="file not found"):
        load_model(str(tmp_path / "nothing.onnx"))


def test_weights_in_another_file_are_read_or_reported(tmp_path: Path, crops: list[Crop]) -> None:
    """The file with the weights must lie beside the graph."""
    path = write(tmp_path / "small.onnx", small_graph())
    onnx.save(small_graph(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    actual = probabilities(create_runtime(load_model(str(path)), "onnxruntime", "fp32"), crops, classes=2)
    torch.testing.assert_close(actual, expected(crops), rtol=0, atol=1e-5)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelLoadError, match=r"in another file, which must lie beside it.*weights\.bin"):
        load_model(str(path))


def test_operator_that_no_runtime_has_is_reported(tmp_path: Path) -> None:
    """The graph is valid, but neither runtime knows the domain of one node."""
    proto = small_graph()
    proto.graph.node[3].op_type, proto.graph.node[3].domain = "Unknown", "example"
    proto.opset_import.append(onnx.helper.make_opsetid("example", 1))
    model = load_model(str(write(tmp_path / "small.onnx", proto)))
    for name in RUNTIMES:
        with pytest.raises(ModelLoadError, match=r"cannot (read|run) the model 'small'"):
            create_runtimes(model, [CPU], name=name)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "torch"}, "requires --runtime openvino or onnxruntime"),
        ({"name": "onnxruntime", "precision": "bf16"}, "does not convert it to bf16"),
        ({"name": "openvino", "precision": "int8"}, "needs a quantized model"),
        ({"compiled": True}, "require PyTorch, but .* requires OpenVINO"),
    ],
    ids=str,
)
def test_unsupported_options_are_rejected(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    model = load_model(str(write(tmp_path / "small.onnx", small_graph())))
    with pytest.raises(DeviceUnavailableError, match=reason):
        create_runtimes(model, [CPU], **options)


def test_device_without_a_provider_is_rejected(tmp_path: Path) -> None:
    """The package onnxruntime supports no NVIDIA GPU; the message says which one does."""
    if "CUDAExecutionProvider" in __import__("onnxruntime").get_available_providers():
        pytest.skip("the installed ONNX Runtime supports NVIDIA GPUs")
    model = load_model(str(write(tmp_path / "small.onnx", small_graph())))
    with pytest.raises(DeviceUnavailableError, match=r"does not support cuda:0: install .*onnxruntime-gpu"):
        create_runtimes(model, [torch.device("cuda", 0)])


def test_network_is_rejected_by_onnx_runtime() -> None:
    with pytest.raises(DeviceUnavailableError, match="resnet-service export"):
        create_runtimes(load_model("cifar10"), [CPU], name="onnxruntime")


def test_graph_is_not_a_network(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="is an ONNX file"):
        _ = load_model(str(write(tmp_path / "small.onnx", small_graph()))).network


@pytest.mark.parametrize(
    ("module", "missing", "expected"),
    [
        ("models.onnx", ("onnx",), "the package onnx"),
        ("runtimes.selection", ("onnxruntime", "openvino"), "ONNX Runtime"),
    ],
)
def test_missing_package_is_reported_with_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, missing: tuple[str, ...], expected: str
) -> None:
    path = write(tmp_path / "small.onnx", small_graph())
    monkeypatch.setattr(
        import_module(f"resnet_service.{module}"), "find_spec", lambda name: None if name in missing else name
    )
    with pytest.raises(MissingDependencyError, match=f"{expected}.*make install EXTRAS=onnx"):
        create_runtimes(load_model(str(path)), [CPU])


def test_onnx_runtime_runs_graphs_without_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the choice of auto where OpenVINO is not installed, and all streams share the weights."""
    model = load_model(str(write(tmp_path / "small.onnx", small_graph())))
    selection = import_module("resnet_service.runtimes.selection")
    monkeypatch.setattr(selection, "find_spec", lambda name: None if name == "openvino" else name)
    runtimes = create_runtimes(model, [CPU], streams_per_device=2)
    assert [(runtime.name, runtime.precision) for runtime in runtimes] == [("onnxruntime", "fp32")] * 2
