"""What a run starts from: networks, pretrained weights, frozen layers and preprocessing."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models as torchvision_models

from resnet_service.errors import ModelLoadError, TrainingError
from resnet_service.images import Preprocessing
from resnet_service.models import checkpoint
from resnet_service.models.networks import NETWORKS
from resnet_service.training.data import Dataset
from resnet_service.training.recipes import FINE_TUNING, RECIPES, TrainingSetup, resolve_setup
from resnet_service.training.trainer import Normalize, Trainer, TrainingConfig

PREPROCESSING = Preprocessing(40, 32, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a LeNet with three classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "lenet.safetensors"
    state = NETWORKS["lenet"](3).state_dict()
    checkpoint.save_checkpoint(checkpoint.Checkpoint("lenet", ("a", "b", "c"), PREPROCESSING, state), path)
    return path


def train_one_step(setup: TrainingSetup, *, frozen: bool) -> dict[str, torch.Tensor]:
    """Train the setup's network with two classes for one step and return its weights."""
    side = setup.preprocessing.crop
    images = torch.randint(256, (4, 3, side, side), dtype=torch.uint8)
    dataset = Dataset(images, torch.tensor([0, 1, 0, 1]))
    network = setup.build(2, frozen=frozen)
    normalize = Normalize(setup.preprocessing.mean, setup.preprocessing.std)
    config = TrainingConfig(epochs=1, batch_size=4, ema=0)
    Trainer(
        network, normalize, dataset, dataset, config, device=torch.device("cpu"), frozen=frozen
    ).train_epoch()
    return network.state_dict()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("lenet", 62_006), ("lenet-wide", 1_982_986), ("cifar-resnet18", 11_173_962)],
)
def test_networks_have_their_published_number_of_parameters(name: str, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in NETWORKS[name](10).parameters()) == parameters


def test_resnet18_for_small_images_has_its_own_stem() -> None:
    """From random weights, up to 64 pixels, the first convolution is 3x3."""
    setup = resolve_setup("resnet18", size=16)
    assert setup.network == "cifar-resnet18"
    assert setup.recipe == RECIPES["cifar-resnet18"]
    assert setup.build(2).state_dict()["conv1.weight"].shape == (64, 3, 3, 3)
    assert resolve_setup("resnet18", size=96).network == "resnet18"


@pytest.mark.parametrize("frozen", [True, False])
def test_fine_tuning_replaces_the_last_layer(tmp_path: Path, frozen: bool) -> None:
    """A torchvision classifier with weights from a file trains all layers, or only the last one if frozen."""
    torch.manual_seed(0)
    before = torchvision_models.squeezenet1_1().state_dict()
    torch.save(before, tmp_path / "squeezenet.pth")
    setup = resolve_setup("squeezenet1_1", weights_source=str(tmp_path / "squeezenet.pth"), size=64)
    after = train_one_step(setup, frozen=frozen)
    assert after["classifier.1.weight"].shape[0] == 2
    others = [key for key in after if not key.startswith("classifier.1.")]
    assert all(torch.equal(before[key], after[key]) for key in others) == frozen
    assert setup.recipe == FINE_TUNING
    assert setup.preprocessing.mean == (0.485, 0.456, 0.406)
    assert (setup.preprocessing.crop, setup.preprocessing.resize) == (64, 73)


def test_frozen_network_keeps_the_statistics_of_its_batch_norm(tmp_path: Path) -> None:
    network = NETWORKS["lenet-wide"](10)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean = torch.full_like(module.running_var, 0.5)  # type: ignore[arg-type]
    torch.save(network.state_dict(), tmp_path / "wide.pth")
    setup = resolve_setup("lenet-wide", weights_source=str(tmp_path / "wide.pth"))
    state = train_one_step(setup, frozen=True)
    means = [value for key, value in state.items() if key.endswith("running_mean")]
    assert means
    assert all(mean.eq(0.5).all() for mean in means)


def test_training_starts_from_a_checkpoint(lenet: Path) -> None:
    """Its preprocessing is used, and its last layer is replaced."""
    before = checkpoint.load_checkpoint(lenet).state
    setup = resolve_setup("lenet", weights_source=str(lenet))
    assert setup.preprocessing == PREPROCESSING
    assert not setup.needs_statistics
    after = train_one_step(setup, frozen=True)
    assert torch.equal(before["conv1.weight"], after["conv1.weight"])
    assert after["fc.weight"].shape[0] == 2


def test_checkpoint_for_another_input_size_keeps_the_share_that_is_cropped_away(lenet: Path) -> None:
    preprocessing = resolve_setup("lenet", weights_source=str(lenet), size=64).preprocessing
    assert (preprocessing.resize, preprocessing.crop) == (80, 64)


def test_weights_without_preprocessing_need_the_statistics_of_the_data(lenet: Path, tmp_path: Path) -> None:
    """A plain state dict does not contain mean and standard deviation."""
    torch.save(dict(checkpoint.load_checkpoint(lenet).state), tmp_path / "plain.pth")
    assert resolve_setup("lenet", weights_source=str(tmp_path / "plain.pth")).needs_statistics


def test_weights_of_another_network_are_an_error(lenet: Path) -> None:
    setup = resolve_setup("cifar-resnet10", weights_source=str(lenet))
    with pytest.raises(ModelLoadError, match="do not fit cifar-resnet10"):
        setup.build(2)


def test_published_weights_of_an_own_network_are_an_error() -> None:
    with pytest.raises(TrainingError, match="no published weights for lenet"):
        resolve_setup("lenet", weights_source="DEFAULT")


def test_unknown_network_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(TrainingError, match=r"unknown network 'resnet9000'.*cifar-resnet10"):
        resolve_setup("resnet9000")


def test_network_that_cannot_be_built_for_a_size_is_an_error() -> None:
    with pytest.raises(ModelLoadError, match="100 pixels"):
        resolve_setup("vit_b_16", size=100).build(2)
