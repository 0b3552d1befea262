"""`--compile`: torch.compile with the bundled model, which takes about a minute."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_service.models import load_model
from resnet_service.runtimes.selection import create_runtimes
from tests.support.runtimes import CPU, create_runtime, probabilities


@pytest.mark.skipif(shutil.which("g++") is None, reason="requires a C++ compiler: apt-get install g++")
def test_compiled_network_equals_the_network_and_is_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch compiles the network, the predictions are equal, and the code is cached for later starts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    model = load_model("bundled")
    crops = list(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    [runtime] = create_runtimes(model, [CPU], precision="fp32", compiled=True)
    assert runtime.name == "torch"
    expected = probabilities(create_runtime(model, "torch", "fp32"), crops)
    assert torch.allclose(probabilities(runtime, crops), expected, atol=1e-4)
    assert list(tmp_path.glob("resnet-service/inductor/**/*.so"))
