"""`--compile`: torch.compile, which takes about a minute per model."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_service.models import load_model
from resnet_service.runtimes.selection import create_runtimes
from tests.support.runtimes import CPU, create_runtime, probabilities


@pytest.mark.skipif(shutil.which("g++") is None, reason="requires a C++ compiler: apt-get install g++")
@pytest.mark.parametrize("name", ["cifar10", "efficientnet_lite0"])
def test_compiled_network_equals_the_network_and_is_cached(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch compiles the network, all batch sizes have its predictions, and the code is cached."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    model = load_model(name)
    side, classes = model.preprocessing.crop, len(model.labels)
    crops = list(np.random.default_rng(0).integers(0, 256, (4, side, side, 3), dtype=np.uint8))
    [runtime] = create_runtimes(model, [CPU], precision="fp32", compiled=True)
    assert runtime.name == "torch"
    expected = probabilities(create_runtime(model, "torch", "fp32"), crops, classes)
    for count in (1, 2, 4):
        actual = probabilities(runtime, crops[:count], classes)
        assert torch.allclose(actual, expected[:count], atol=1e-4)
    assert list(tmp_path.glob("resnet-service/inductor/**/*.so"))
