"""Models of timm: the served results equal those of timm's own transforms and its eager networks.

Published weights cannot be downloaded everywhere, so the networks have random ones.
"""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from resnet_service.errors import ModelLoadError
from resnet_service.images import decode_image
from resnet_service.models import ModelSource, load_model, load_model_or_random
from resnet_service.models.model import Model
from resnet_service.models.timm_models import get_timm_spec
from resnet_service.runtimes.selection import create_runtimes
from tests.support import PHOTOGRAPHS
from tests.support.models import same_weights

timm = pytest.importorskip("timm", reason="needs the extra timm")

SMALL = "test_resnet"
"""timm's smallest network, for tests: 0.5 million parameters."""

ARCHITECTURES = (
    "resnet18",
    "resnext26ts",
    "regnety_002",
    "repvgg_a0",
    "efficientnet_b0",
    "tf_efficientnetv2_b0",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "mnasnet_small",
    "ghostnet_100",
    "convnext_atto",
    "poolformer_s12",
    "edgenext_xx_small",
    "mobilevit_xxs",
    "fastvit_t8",
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "pit_ti_224",
    "levit_128s",
    "visformer_tiny",
    "resmlp_12_224",
    "xcit_nano_12_p8_224",
)


class Scale(nn.Module):
    """Multiply by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def random_network(name: str, images: Tensor) -> nn.Module:
    """Return a network with random weights in which each layer has an effect, as after training on `images`.

    Some architectures start with zeros in the head, and with residual branches multiplied by 1e-6. Logits
    are scaled so that probabilities are neither all equal nor zero.
    """
    torch.manual_seed(0)
    network: nn.Module = get_timm_spec(name).build()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(0, 0.02)
            elif parameter.ndim == 1 and parameter.abs().max() <= 1e-3:
                parameter.fill_(0.1)
        for module in network.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.momentum = 1.0
        network.train()(images)
        factor = 1 / float(network.eval()(images).std())
    return nn.Sequential(network, Scale(factor)).eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_best_classes_are_those_of_timm(architecture: str) -> None:
    """The pixels are those of timm's transform, and for the same pixels, the best classes are the network's.

    Not in one step: a network with random weights magnifies the rounding of pixels, unlike a trained one.
    """
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    name = f"timm/{architecture}"
    spec = get_timm_spec(name)
    photographs = [path.read_bytes() for path in sorted(PHOTOGRAPHS.glob("*.jpg"))]
    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(architecture).to_dict())
    transform = create_transform(**config)
    images = torch.stack([transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in photographs])
    crops = [decode_image(data, spec.preprocessing) for data in photographs]
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    ours = (torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255 - mean) / std
    difference = (ours - images).abs() * std * 255  # gray levels
    assert difference.mean() < 0.3
    assert difference.max() < 4
    network = random_network(name, ours)
    with torch.inference_mode():
        expected = network(ours).softmax(1).topk(5)
    model = Model(name, network, spec.labels, spec.preprocessing, spec.source)
    [runtime] = create_runtimes(model, [torch.device("cpu")], precision="fp32", streams_per_device=1)
    result = runtime.run(crops, 5)
    assert result.class_ids.tolist() == expected.indices.tolist()
    np.testing.assert_allclose(result.probabilities, expected.values, rtol=0.001)


@pytest.fixture
def hub_cache(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    torch_cache: Path,  # noqa: ARG001  # it makes all hosts unreachable
) -> Path:
    """Set an empty cache for the hub, which cannot be reached."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_published_weights_are_read_from_the_cache(hub_cache: Path) -> None:
    spec = get_timm_spec(f"timm/{SMALL}")
    network = spec.build()
    repository = hub_cache / f"models--{spec.source.replace('/', '--')}"
    snapshot = repository / "snapshots" / "0123456789"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    save_file(network.state_dict(), snapshot / "model.safetensors")
    model = load_model(f"timm/{SMALL}")
    assert same_weights(model.network, network)
    assert (model.name, model.source) == (f"timm/{SMALL}", spec.source)
    assert model.labels[258] == "Samoyed"
    assert (model.preprocessing.resize, model.preprocessing.crop) == (math.floor(160 / 0.95), 160)


@pytest.mark.usefixtures("hub_cache")
def test_weights_can_be_a_file(tmp_path: Path) -> None:
    network = get_timm_spec(f"timm/{SMALL}").build()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "mine.pth")
    assert same_weights(load_model(ModelSource(f"timm/{SMALL}", str(tmp_path / "mine.pth"))).network, network)


@pytest.mark.usefixtures("hub_cache")
def test_without_the_hub_an_error_says_so_and_measurements_use_random_weights() -> None:
    with pytest.raises(ModelLoadError, match=r"huggingface\.co could not be reached"):
        load_model(f"timm/{SMALL}")
    model, reason = load_model_or_random(f"timm/{SMALL}")
    assert model.source == "random weights"
    assert "huggingface.co could not be reached" in str(reason)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet5O", "did you mean timm/resnet5"),
        ("timm/resnet50.nonsense", r"Published: .*resnet50\.a1_in1k"),
        ("timm/nfnet_f0", "publishes no weights for timm/nfnet_f0; --weights FILE"),
        ("timm/dm_nfnet_f0.dm_in1k", "crop mode squash"),
        ("timm/vit_base_patch16_clip_224.openai", "512 outputs without names"),
        ("timm/vit_base_patch16_siglip_gap_224.webli", "outputs without names"),
    ],
)
def test_models_that_cannot_be_served_are_explained(name: str, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        load_model(name)
