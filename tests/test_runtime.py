"""The torch runtime: that folding, batching and precision do not change the answer."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torchvision import transforms

from service import hardware, models
from service.errors import DeviceOutOfMemory, DeviceUnavailable
from service.hardware import Precision
from service.models import Model
from service.runtimes.pytorch import TorchRuntime

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Model:
    return models.load("bundled")


@pytest.fixture(scope="module")
def crops(model: Model) -> list[npt.NDArray[np.uint8]]:
    size = model.preprocessing.crop
    random = np.random.default_rng(0)
    smooth = random.integers(0, 256, (16, 4, 4, 3), dtype=np.uint8)
    return list(smooth.repeat(size // 4, 1).repeat(size // 4, 2))


def probabilities(model: Model, crops: list[npt.NDArray[np.uint8]], precision: Precision) -> torch.Tensor:
    """All classes' probabilities, [N, classes], in the order of the classes."""
    runtime = TorchRuntime(model.network, model.preprocessing, CPU, precision)
    best = runtime.run(crops, len(model.labels))
    ordered = np.zeros_like(best.probabilities)
    np.put_along_axis(ordered, best.class_ids, best.probabilities, 1)
    return torch.from_numpy(ordered)


def test_equals_the_plain_network(model: Model, crops: list[npt.NDArray[np.uint8]]) -> None:
    """Folded, normalised on the device and channels last, it answers like the network as it was loaded."""
    normalise = transforms.Normalize(model.preprocessing.mean, model.preprocessing.std)
    pictures = torch.stack([normalise(transforms.functional.to_tensor(crop)) for crop in crops])
    with torch.inference_mode():
        expected = model.network(pictures).softmax(1)
    assert torch.allclose(probabilities(model, crops, "fp32"), expected, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_batch_answers_like_its_pictures_alone(
    model: Model, crops: list[npt.NDArray[np.uint8]], precision: Precision
) -> None:
    """At the same precision a batched answer equals the single one to 1e-3."""
    batched = probabilities(model, crops, precision)
    single = torch.cat([probabilities(model, [crop], precision) for crop in crops])
    assert torch.allclose(batched, single, atol=1e-3, rtol=0)


def test_bf16_keeps_the_answer(model: Model, crops: list[npt.NDArray[np.uint8]]) -> None:
    """bf16 moves probabilities by little."""
    assert (probabilities(model, crops, "bf16") - probabilities(model, crops, "fp32")).abs().max() < 0.05


def test_the_model_given_is_left_alone(model: Model) -> None:
    """Folding and rounding happen on a copy, so that one model can be run in several precisions."""
    before = {key: value.clone() for key, value in model.network.state_dict().items()}
    TorchRuntime(model.network, model.preprocessing, CPU, "bf16")
    after = model.network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_out_of_memory_is_told_apart(model: Model, crops: list[npt.NDArray[np.uint8]]) -> None:
    """An allocation that the CPU refuses is DeviceOutOfMemory, so that the batch can shrink."""

    class Greedy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.repeat(1 << 20, 1 << 20, 1, 1)

    runtime = TorchRuntime(Greedy(), model.preprocessing, CPU, "fp32")
    with pytest.raises(DeviceOutOfMemory):
        runtime.run(crops, 1)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_forced_device_is_used_or_refused(name: str) -> None:
    """A forced device is the one that is used where it exists, and a clear error where it does not."""
    if {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[name]:
        assert hardware.choose_device(name).type == name
    else:
        with pytest.raises(DeviceUnavailable, match=name):
            hardware.choose_device(name)


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "meta", "nonsense"])
def test_a_missing_device_is_a_clear_error(name: str) -> None:
    """A forced device that is not there is refused by name, never silently replaced."""
    with pytest.raises(DeviceUnavailable, match=name.split(":")[0]):
        hardware.choose_device(name)


def test_auto_finds_a_device_and_a_precision() -> None:
    """The choice auto always gives a device that works and a precision that it has."""
    device = hardware.choose_device("auto")
    assert device.type in ("cuda", "mps", "cpu")
    expected = "bf16" if hardware.has_native_bf16() else "fp32"
    assert hardware.choose_precision(CPU, "auto") == expected


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_a_precision_the_cpu_lacks(precision: Precision) -> None:
    """A precision the device does not have is a clear error."""
    with pytest.raises(DeviceUnavailable, match=precision):
        hardware.choose_precision(CPU, precision)
