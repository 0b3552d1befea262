"""Runtimes: conversion, folding, batching and precision do not change the predictions."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torchvision import transforms

from resnet_service import machine
from resnet_service.devices import Precision
from resnet_service.errors import DeviceOutOfMemoryError, DeviceUnavailableError
from resnet_service.images import Crop
from resnet_service.machine import available_cpus, cpu_quota, has_native_bf16
from resnet_service.models import Model, load_model
from resnet_service.runtimes import Runtime
from resnet_service.runtimes.batch_norm import fold_batch_norms
from resnet_service.runtimes.pytorch import TorchRuntime
from resnet_service.runtimes.runtime import top_k
from resnet_service.runtimes.selection import RuntimeName, create_runtimes
from tests.support.cgroups import write_cgroups
from tests.support.runtimes import CPU, create_runtime, probabilities

Runtimes = dict[tuple[RuntimeName, Precision], Runtime]


@pytest.fixture(scope="module")
def model() -> Model:
    """Return the model cifar10."""
    return load_model("cifar10")


@pytest.fixture(scope="module")
def crops(model: Model) -> list[Crop]:
    """Return crops with smooth random colors."""
    size = model.preprocessing.crop
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    return list(blocks.repeat(size // 4, 1).repeat(size // 4, 2))


@pytest.fixture(scope="module")
def runtimes(model: Model) -> Runtimes:
    """Return one runtime per kind and precision, shared by the tests of this module."""
    precisions: list[Precision] = ["fp32", "bf16"]
    kinds: list[tuple[RuntimeName, Precision]] = [("torch", precision) for precision in precisions]
    kinds.append(("openvino", "fp32"))
    if has_native_bf16():  # required by OpenVINO
        kinds.append(("openvino", "bf16"))
    return {(name, precision): create_runtime(model, name, precision) for name, precision in kinds}


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_runtime_equals_the_network(
    model: Model, crops: list[Crop], runtimes: Runtimes, name: RuntimeName
) -> None:
    """Converted, folded and with normalization on the device, the probabilities equal the network's."""
    normalize = transforms.Normalize(model.preprocessing.mean, model.preprocessing.std)
    images = torch.stack([normalize(transforms.functional.to_tensor(crop)) for crop in crops])
    with torch.inference_mode():
        expected = model.network(images).softmax(1)
    assert torch.allclose(probabilities(runtimes[name, "fp32"], crops), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["torch", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_batch_equals_single_images(
    crops: list[Crop], runtimes: Runtimes, name: RuntimeName, precision: Precision
) -> None:
    """At the same precision, the probabilities of a batch equal those of its images to 1e-3."""
    if (name, precision) not in runtimes:
        pytest.skip("this CPU has no native bf16, which OpenVINO requires")
    runtime = runtimes[name, precision]
    batch = probabilities(runtime, crops)
    single = torch.cat([probabilities(runtime, [crop]) for crop in crops])
    assert torch.allclose(batch, single, atol=1e-3, rtol=0)


def test_auto_runtime_is_close_to_fp32(model: Model, crops: list[Crop], runtimes: Runtimes) -> None:
    """The runtime that auto selects, in bf16 if it is native, changes probabilities by less than 0.05."""
    [auto] = create_runtimes(model, [CPU], streams_per_device=1)
    expected = probabilities(runtimes["torch", "fp32"], crops)
    assert (probabilities(auto, crops) - expected).abs().max() < 0.05


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_streams_return_equal_results(model: Model, crops: list[Crop], name: RuntimeName) -> None:
    """Two streams on one device run at the same time, with the same weights."""
    streams = create_runtimes(model, [CPU], name=name, precision="fp32", streams_per_device=2)
    expected = probabilities(streams[0], crops)

    def repeat(runtime: Runtime) -> list[torch.Tensor]:
        return [probabilities(runtime, crops) for _ in range(4)]

    with ThreadPoolExecutor(2) as pool:
        concurrent = list(pool.map(repeat, streams))
    for result in (*concurrent[0], *concurrent[1], *repeat(streams[1])):
        assert torch.allclose(result, expected, atol=1e-5)


def test_cpu_quota_limits_threads(
    model: Model, crops: list[Crop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a cgroup quota of half a CPU, one thread computes, however many CPUs the machine has."""
    quota = write_cgroups(tmp_path, {"/": {"cpu.max": "50000 100000"}}) / "cpu.max"
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert available_cpus() == 1
    runtime = create_runtime(model, "torch", "fp32")

    def count_threads() -> int:
        runtime.run(crops, 1)
        return torch.get_num_threads()

    with ThreadPoolExecutor(1) as pool:  # PyTorch stores the number per calling thread
        assert pool.submit(count_threads).result() == 1
    quota.write_text("max 100000\n")
    assert cpu_quota() is None


def test_runtime_does_not_modify_the_model(model: Model) -> None:
    """Folding and rounding are applied to a copy, so that a model can run in several precisions."""
    before = {key: value.clone() for key, value in model.network.state_dict().items()}
    TorchRuntime(model.network, model.preprocessing, CPU, "bf16")
    after = model.network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_failed_allocation_raises_out_of_memory_error(model: Model, crops: list[Crop]) -> None:
    """A failed allocation on the CPU raises DeviceOutOfMemoryError, so that the batch can be split."""

    class Huge(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.repeat(1 << 20, 1 << 20, 1, 1)

    runtime = TorchRuntime(Huge(), model.preprocessing, CPU, "fp32")
    with pytest.raises(DeviceOutOfMemoryError):
        runtime.run(crops, 1)


def test_int8_requires_a_quantized_model(model: Model) -> None:
    """int8 with an unquantized model is rejected; the message names the command that quantizes."""
    with pytest.raises(DeviceUnavailableError, match="quantize"):
        create_runtimes(model, [CPU], precision="int8")


def test_compile_with_openvino_is_rejected(model: Model) -> None:
    """--compile is an option of PyTorch and cannot be combined with --runtime openvino."""
    with pytest.raises(DeviceUnavailableError, match="require PyTorch"):
        create_runtimes(model, [CPU], name="openvino", compiled=True)


def test_top_k_is_ordered_by_probability(crops: list[Crop], runtimes: Runtimes) -> None:
    """Each runtime returns the k best classes, best first, as int64 and fp32."""
    for runtime in runtimes.values():
        best: npt.NDArray[np.float32] = runtime.run(crops, 3).probabilities
        assert best.shape == (len(crops), 3)
        assert best.dtype == np.float32
        assert (np.diff(best, axis=1) <= 0).all()
        assert np.allclose(best, np.sort(probabilities(runtime, crops).numpy())[:, :-4:-1], atol=1e-3)


def test_entropy_is_that_of_all_classes(crops: list[Crop], runtimes: Runtimes) -> None:
    """Each runtime returns the entropy relative to its maximum, however few classes are requested."""
    for runtime in runtimes.values():
        expected = torch.distributions.Categorical(probs=probabilities(runtime, crops)).entropy() / math.log(
            10
        )
        result = runtime.run(crops, 1)
        assert result.entropy.dtype == np.float32
        np.testing.assert_allclose(result.entropy, expected, atol=1e-3)
        assert [image.entropy for image in result.images()] == list(np.atleast_1d(result.entropy))


def test_entropy_is_0_if_one_class_is_certain_and_1_if_all_are_equal() -> None:
    """Probabilities of 0, which have no logarithm, count nothing; so does a model with one class."""
    rows = np.array([[0, 1, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0]], np.float32)
    np.testing.assert_allclose(top_k(rows, 1, "cpu").entropy, [0, 1, 0.5], atol=1e-6)
    assert top_k(np.ones((1, 1), np.float32), 1, "cpu").entropy == 0


class SharedConvolution(nn.Module):
    """One convolution with two normalizations, and one with a single one."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.own = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first, second, third = self.norms
        shared = first(self.shared(images)) + second(self.shared(images + 1))
        output: torch.Tensor = shared + third(self.own(images))
        return output


@torch.inference_mode()
def test_batch_norm_is_folded_only_if_it_alone_uses_a_convolution() -> None:
    """The output stays the same, and so does the network that was folded."""
    network = SharedConvolution().eval()
    for norm in network.norms:
        assert isinstance(norm, nn.BatchNorm2d)
        norm.running_mean = torch.randn(3)
        norm.running_var = torch.rand(3) + 0.5
    images = torch.randn(2, 3, 8, 8)
    expected = network(images)
    folded = fold_batch_norms(network)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules()) == 2
    torch.testing.assert_close(folded(images), expected)
    torch.testing.assert_close(network(images), expected, rtol=0, atol=0)
