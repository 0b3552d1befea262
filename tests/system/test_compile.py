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
    """All batch sizes have the predictions and the embeddings of the network, and the code is cached."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    model = load_model(name)
    side, classes = model.preprocessing.crop, len(model.labels)
    crops = list(np.random.default_rng(0).integers(0, 256, (4, side, side, 3), dtype=np.uint8))
    [runtime] = create_runtimes(model, [CPU], precision="fp32", compiled=True)
    assert runtime.name == "torch"
    reference = create_runtime(model, "torch", "fp32")
    expected = probabilities(reference, crops, classes)
    embeddings = reference.run(crops, 1, with_embeddings=True).embedding
    assert embeddings is not None
    for count in (1, 2, 4):
        actual = probabilities(runtime, crops[:count], classes)
        assert torch.allclose(actual, expected[:count], atol=1e-4)
        compiled = runtime.run(crops[:count], 1, with_embeddings=True).embedding
        assert compiled is not None
        assert np.allclose(compiled, embeddings[:count], atol=1e-3)
    assert list(tmp_path.glob("resnet-service/inductor/**/*.so"))
