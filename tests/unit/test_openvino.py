"""The OpenVINO runtime: its cache of converted networks, fallback to PyTorch, and damaged models."""

from pathlib import Path

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from torch import nn

from resnet_service.errors import ModelLoadError
from resnet_service.images import Crop, Preprocessing
from resnet_service.models import Model, OpenVINOModel
from resnet_service.models.networks import NETWORKS
from resnet_service.runtimes.selection import create_runtimes
from tests.support.runtimes import CPU, create_runtime, probabilities

pytest.importorskip("openvino", reason="requires the extra openvino")

LABELS = tuple("abcdefghij")
PREPROCESSING = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def small_model(seed: int = 0) -> Model:
    """Return a LeNet with random weights, which converts in a second."""
    torch.manual_seed(seed)
    return Model("lenet", NETWORKS["lenet"](10).eval(), LABELS, PREPROCESSING, "test")


@pytest.fixture(scope="module")
def crops() -> list[Crop]:
    """Return random crops."""
    return list(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))


def test_converted_network_is_cached(
    crops: list[Crop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second start reads the converted network from the cache; other weights are another entry."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def entries() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.xml")}

    first = probabilities(create_runtime(small_model(), "openvino", "fp32"), crops)
    after_first = entries()
    assert len(after_first) == 1
    assert torch.equal(probabilities(create_runtime(small_model(), "openvino", "fp32"), crops), first)
    assert entries() == after_first
    create_runtime(small_model(seed=1), "openvino", "fp32")
    assert len(entries()) == 2


def test_unwritable_cache_is_logged_and_ignored(
    crops: list[Crop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the cache cannot be written, the network is converted at each start."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with capture_logs() as logs:
        runtime = create_runtime(small_model(), "openvino", "fp32")
    assert logs[0]["event"] == "cache_unusable"
    assert len(probabilities(runtime, crops)) == len(crops)


def test_damaged_cache_is_logged_and_ignored(
    crops: list[Crop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a cached network is damaged, it is converted again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = probabilities(create_runtime(small_model(), "openvino", "fp32"), crops)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    with capture_logs() as logs:
        second = probabilities(create_runtime(small_model(), "openvino", "fp32"), crops)
    assert logs[0]["event"] == "cache_unusable"
    assert torch.allclose(second, first)


def test_network_that_cannot_be_converted_runs_with_torch(crops: list[Crop]) -> None:
    """Auto logs the reason and uses PyTorch; with --runtime openvino the conversion error is raised."""

    class Unconvertible(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            values: torch.Tensor = torch.linalg.svdvals(x.mean(1))
            return values[:, :10]

    model = Model("unconvertible", Unconvertible(), LABELS, PREPROCESSING, "test")
    with capture_logs() as logs:
        [runtime] = create_runtimes(model, [CPU], precision="fp32", streams_per_device=1)
    assert runtime.name == "torch"
    assert logs[-1]["event"] == "openvino_conversion_failed"
    assert len(probabilities(runtime, crops)) == len(crops)
    with pytest.raises(ModelLoadError, match="convert"):
        create_runtimes(model, [CPU], name="openvino", precision="fp32")


@pytest.mark.parametrize("program", [OpenVINOModel(b"no xml", b""), OpenVINOModel(b"", b"\0" * 8)])
def test_damaged_openvino_model_is_rejected(program: OpenVINOModel) -> None:
    """A quantized model that OpenVINO cannot read raises ModelLoadError."""
    model = Model("damaged", program, LABELS, PREPROCESSING, "test")
    with pytest.raises(ModelLoadError, match="damaged"):
        create_runtimes(model, [CPU])
