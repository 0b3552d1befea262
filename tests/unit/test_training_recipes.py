"""What a run starts from: networks, pretrained weights, frozen layers and preprocessing."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torchvision import models

from resnet_service.cli import main
from resnet_service.errors import ModelLoadError, TrainingError
from resnet_service.images import Preprocessing
from resnet_service.models import OpenVINOModel, catalog, checkpoint, load_model
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


def test_regnet_gets_a_new_last_layer(tmp_path: Path) -> None:
    """While it is built, it computes with values, so it cannot be built without them."""
    torch.save(models.regnet_y_400mf().state_dict(), tmp_path / "regnet.pth")
    setup = resolve_setup("regnet_y_400mf", weights_source=str(tmp_path / "regnet.pth"))
    network = setup.build(3, frozen=True)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("frozen", [True, False])
def test_fine_tuning_replaces_the_last_layer(tmp_path: Path, frozen: bool) -> None:
    """A torchvision classifier with weights from a file trains all layers, or only the last one if frozen."""
    torch.manual_seed(0)
    before = models.squeezenet1_1().state_dict()
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
    """A plain state dict contains neither mean and standard deviation nor the name of the network."""
    plain = str(tmp_path / "plain.pth")
    torch.save(dict(checkpoint.load_checkpoint(lenet).state), plain)
    assert resolve_setup("lenet", weights_source=plain).needs_statistics
    with pytest.raises(TrainingError, match=r"plain.pth does not name its network; set --network"):
        resolve_setup(weights_source=plain)


@pytest.mark.parametrize(
    ("source", "network", "side"),
    [("cifar10", "cifar-resnet18", 32), ("efficientnet_lite0", "efficientnet_lite0", 224)],
)
def test_network_is_that_of_the_model_named_by_weights(source: str, network: str, side: int) -> None:
    """Only the head of the model is new, and its preprocessing stays."""
    setup = resolve_setup(weights_source=source)
    original = load_model(source)
    assert setup.network == network
    assert setup.weights is not None
    assert setup.weights.name.startswith(source[:5])
    assert "/" not in setup.weights.name  # the log does not depend on the folder of the installation
    assert setup.recipe == FINE_TUNING
    assert setup.preprocessing == original.preprocessing
    assert setup.preprocessing.crop == side
    state, before = setup.build(3).state_dict(), original.network.state_dict()
    changed = {key for key in before if not torch.equal(state[key], before[key])}
    assert {key.rpartition(".")[2] for key in changed} == {"weight", "bias"}
    assert {len(state[key]) for key in changed} == {3}


def test_network_is_that_of_the_checkpoint(lenet: Path) -> None:
    assert resolve_setup(weights_source=str(lenet)).network == "lenet"


def test_network_may_be_named_beside_its_weights() -> None:
    """The name resnet18 includes the variant for small images."""
    for network in ("cifar-resnet18", "resnet18"):
        assert resolve_setup(network, weights_source="cifar10").network == "cifar-resnet18"


@pytest.mark.parametrize("source", ["cifar10", "efficientnet_lite0", "resnet50", "checkpoint"])
def test_weights_of_another_network_are_an_error(lenet: Path, source: str) -> None:
    source = str(lenet) if source == "checkpoint" else source
    with pytest.raises(TrainingError, match="not cifar-resnet10; leave out --network"):
        resolve_setup("cifar-resnet10", weights_source=source)


def test_state_dict_of_another_network_is_an_error(lenet: Path, tmp_path: Path) -> None:
    torch.save(dict(checkpoint.load_checkpoint(lenet).state), tmp_path / "plain.pth")
    setup = resolve_setup("cifar-resnet10", weights_source=str(tmp_path / "plain.pth"))
    with pytest.raises(ModelLoadError, match="do not fit cifar-resnet10"):
        setup.build(2)


@pytest.mark.parametrize(
    ("network", "source", "message"),
    [
        (None, "cifar01", r"neither a file nor a model; did you mean cifar10"),
        (None, "missing.pth", "neither a file nor a model"),
        (None, "https://localhost/resnet50.pth", "does not name its network"),
        ("lenet", "DEFAULT", "no published weights for lenet"),
        ("resnet50", "IMAGENET1K_V3", "sets of resnet50, IMAGENET1K_V1, IMAGENET1K_V2"),
    ],
)
def test_unknown_weights_are_an_error_that_names_the_alternatives(
    network: str | None, source: str, message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        resolve_setup(network, weights_source=source)


def test_published_set_is_that_of_the_network() -> None:
    setup = resolve_setup("resnet50", weights_source="IMAGENET1K_V1")
    assert setup.weights is not None
    assert setup.weights.source == setup.weights.name == models.ResNet50_Weights.IMAGENET1K_V1.url


def test_quantized_checkpoint_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "int8.safetensors"
    state = OpenVINOModel(b"<net/>", b"weights").state_dict()
    checkpoint.save_checkpoint(checkpoint.Checkpoint("cifar10", ("a", "b"), PREPROCESSING, state), path)
    with pytest.raises(TrainingError, match="is quantized and cannot be trained"):
        resolve_setup(weights_source=str(path))


def test_unknown_network_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(TrainingError, match=r"unknown network 'resnet9000'.*cifar-resnet10"):
        resolve_setup("resnet9000")


def test_network_that_cannot_be_built_for_a_size_is_an_error() -> None:
    with pytest.raises(ModelLoadError, match="100 pixels"):
        resolve_setup("vit_b_16", size=100).build(2)


def test_help_of_train_lists_all_networks() -> None:
    text = CliRunner().invoke(main, ["train", "--help"]).output
    networks = text.partition("Networks:")[2].replace(",", " ").rstrip(".\n").split()
    assert sorted(networks) == sorted([*NETWORKS, *catalog.model_names()])
