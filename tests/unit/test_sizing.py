"""Streams and batch sizes on a CPU: the same at each start, whatever else the machine runs."""

import asyncio
import itertools
import time
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torchvision import models

from resnet_service.images import Preprocessing
from resnet_service.models import Model, load_model
from resnet_service.models.checkpoint import Checkpoint, save_checkpoint
from resnet_service.models.networks import NETWORKS
from resnet_service.models.operations import count_network_operations
from resnet_service.runtimes import sizing
from resnet_service.runtimes.selection import create_runtimes
from resnet_service.runtimes.sizing import has_small_images, limit_batches
from resnet_service.server.local_backend import LocalBackend
from resnet_service.server.state import build_app_state
from resnet_service.settings import Settings
from tests.support.runtimes import CPU

SMALL = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
IMAGENET = Preprocessing(256, 224, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Placed(NamedTuple):
    """A runtime, as far as its batches are sized."""

    device: str


def placed(device: str, streams: int) -> list[Placed]:
    return [Placed(device)] * streams


def imagenet_model(name: str) -> Model:
    network = getattr(models, name)().eval()
    return Model(name, network, tuple(map(str, range(1000))), IMAGENET, "")


@pytest.fixture
def noisy_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every duration up to a thousand times as long, as beside busy processes; seeded."""
    random, real = Random(20), time.perf_counter
    now = previous = real()

    def read() -> float:
        nonlocal now, previous
        current = real()
        now += (current - previous) * random.choice([1, 30, 1000])
        previous = current
        return now

    monkeypatch.setattr(time, "perf_counter", read)


@pytest.mark.usefixtures("noisy_clock")
def test_ten_noisy_starts_choose_the_same(tmp_path: Path) -> None:
    """If durations vary by a factor of 1000, ten starts form batches of the same size on as many streams."""
    path = tmp_path / "lenet.safetensors"
    save_checkpoint(Checkpoint("lenet", ("cat", "dog"), SMALL, NETWORKS["lenet"](2).state_dict()), path)

    async def start() -> tuple[float | None, float | None]:
        state = build_app_state(Settings(model=str(path)))
        assert isinstance(state.backend, LocalBackend)
        state.backend.engines.start()
        await state.backend.engines.wait_until_warm()
        value = state.metrics.registry.get_sample_value
        labels = {"model": path.stem, "version": "1"}
        choice = value("inference_largest_batch", labels), value("inference_device_streams", labels)
        await state.close()
        return choice

    choices = {asyncio.run(start()) for _ in range(10)}
    assert len(choices) == 1
    assert None not in choices.pop()


@pytest.mark.parametrize(
    ("name", "streams", "cores", "size"),
    [
        ("resnet18", 1, 1, 4),
        ("resnet50", 1, 2, 4),
        ("resnet50", 2, 2, 2),
        ("resnet50", 1, 64, 32),
        ("vit_b_16", 2, 2, 1),
        ("mobilenet_v3_small", 2, 2, 32),
    ],
)
def test_batches_keep_the_cores_busy_for_a_fraction_of_a_second(
    name: str, streams: int, cores: int, size: int
) -> None:
    """A batch has about 12 GFLOP for each core of its stream, between 1 and 32 images."""
    limit = limit_batches(imagenet_model(name), placed("cpu", streams), threads=cores)  # type: ignore[arg-type]
    assert limit.size == size
    assert "GFLOP per image" in limit.reason


def test_a_setting_or_a_gpu_decides_the_batch_size() -> None:
    """`max_batch` is the limit if it is set; a GPU gets 32, without counting operations."""
    model = load_model("cifar10")
    for device, streams in itertools.product(("cpu", "cuda:0"), (1, 2)):
        assert limit_batches(model, placed(device, streams), 7).size == 7  # type: ignore[arg-type]
    assert limit_batches(model, placed("cuda:0", 2)).size == 32  # type: ignore[arg-type]


def test_small_images_get_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model cifar10 has one stream on two cores, ResNet-50 does not, and a setting decides."""
    pytest.importorskip("openvino", reason="requires the extra openvino")
    model = load_model("cifar10")
    assert has_small_images(model, 2)
    assert not has_small_images(imagenet_model("resnet50"), 2)
    monkeypatch.setattr(sizing, "available_cpus", lambda: 2)
    assert len(create_runtimes(model, [CPU], name="openvino", precision="fp32")) == 1
    assert len(create_runtimes(model, [CPU], name="openvino", precision="fp32", streams_per_device=2)) == 2


def test_every_own_network_can_be_counted() -> None:
    """Networks of checkpoints have operations, and counting them computes nothing."""
    for create in NETWORKS.values():
        network: nn.Module = create(10)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        assert count_network_operations(network, 32) > 1e5
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_converted_network_has_the_same_operations() -> None:
    """The operations of OpenVINO's file equal those of the network, with grouped convolutions as well."""
    openvino = pytest.importorskip("resnet_service.runtimes.openvino", reason="requires the extra openvino")
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(8, 2)),
    )
    model = Model("grouped", network.eval(), ("cat", "dog"), SMALL, "")
    converted = openvino.serialize(openvino.convert(model.network, model.preprocessing))
    quantized = Model(model.name, converted, model.labels, model.preprocessing, "")
    assert quantized.operations == model.operations
