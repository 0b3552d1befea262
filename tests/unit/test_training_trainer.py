"""The trainer: learning, the effect of each hyperparameter, and restoring its state."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_service.errors import TrainingError
from resnet_service.models.networks import NETWORKS
from resnet_service.training.data import Dataset
from resnet_service.training.trainer import Epoch, Normalize, Step, Trainer, TrainingConfig
from tests.support.training import is_equal

CONFIG = TrainingConfig(epochs=6, batch_size=8, progressive=True)
"""Twelve steps: in fewer than eleven, the weight average would equal the weights."""


class TinyNetwork(nn.Module):
    """Two convolutions with batch norm, and a linear layer; in training, with auxiliary logits on request."""

    def __init__(self, *, has_auxiliary: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2)),
        )
        self.fc = nn.Linear(4, 2)
        self._has_auxiliary = has_auxiliary

    def forward(self, images: Tensor) -> Any:
        logits = self.fc(self.features(images))
        return (logits, logits.detach()) if self.training and self._has_auxiliary else logits


def noise(count: int, side: int) -> Dataset:
    """Return images of noise with alternating classes, which can only be memorized."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return Dataset(images.contiguous(memory_format=torch.channels_last), torch.arange(count) % 2)


def create_trainer(
    config: TrainingConfig, network: nn.Module | None = None, dataset: Dataset | None = None
) -> Trainer:
    torch.manual_seed(config.seed)
    dataset = dataset or noise(16, 16)
    normalize = Normalize((0.5, 0.5, 0.5), (0.3, 0.3, 0.3))
    return Trainer(network or TinyNetwork(), normalize, dataset, dataset, config, device=torch.device("cpu"))


def train(config: TrainingConfig) -> dict[str, Tensor]:
    """Train a tiny network and return its weights."""
    trainer = create_trainer(config)
    for _ in range(config.epochs):
        trainer.train_epoch()
    return trainer.result.state_dict()


@pytest.fixture(scope="module")
def default() -> dict[str, Tensor]:
    """Return the weights after training with the default hyperparameters."""
    return train(CONFIG)


def test_network_memorizes_one_batch() -> None:
    """Sixteen noise images are classified without errors after 60 epochs."""
    config = TrainingConfig(
        epochs=60, batch_size=16, max_lr=0.05, ema=0, weight_decay=0, label_smoothing=0, flip=False, shift=0
    )
    trainer = create_trainer(config, NETWORKS["lenet"](2), noise(16, 32))
    epochs = [trainer.train_epoch() for _ in range(config.epochs)]
    assert epochs[-1].accuracy == 1
    assert epochs[-1].loss < 0.1 < epochs[0].loss


def test_epoch_and_steps_report_their_results() -> None:
    trainer = create_trainer(CONFIG)
    steps: list[Step] = []
    epoch = trainer.train_epoch(steps.append)
    assert (epoch.number, epoch.size, trainer.completed_epochs) == (1, 8, 1)
    assert len(steps) == trainer.steps_per_epoch == 2
    assert epoch.loss == pytest.approx(sum(step.loss.item() for step in steps) / 2)
    assert epoch.train_accuracy == pytest.approx(sum(step.accuracy.item() for step in steps) / 2)
    assert epoch.learning_rate == steps[-1].learning_rate > 0
    assert 0 <= epoch.accuracy <= 1


def test_seed_determines_the_result(default: dict[str, Tensor]) -> None:
    assert is_equal(train(CONFIG), default)
    assert not is_equal(train(replace(CONFIG, seed=2)), default)


@pytest.mark.parametrize(
    "option",
    [
        {"momentum": 0.0},
        {"momentum": 0.5},
        {"max_lr": 0.05},
        {"muon_lr": 0.02},
        {"weight_decay": 0.1},
        {"ema": 0.0},
        {"label_smoothing": 0.5},
        {"flip": False},
        {"shift": 0.25},
        {"cutout": 0.5},
        {"progressive": False},
    ],
    ids=str,
)
def test_each_hyperparameter_changes_the_result(option: dict[str, Any], default: dict[str, Tensor]) -> None:
    assert not is_equal(train(replace(CONFIG, **option)), default)


def test_two_momenta_lead_to_two_results() -> None:
    assert not is_equal(train(replace(CONFIG, momentum=0.5)), train(replace(CONFIG, momentum=0.8)))


@pytest.mark.parametrize("muon_lr", [0.0, 0.02])
def test_restored_trainer_reaches_identical_weights(muon_lr: float) -> None:
    """Weights, average, optimizers and random numbers continue, those of dropout included."""
    config = replace(CONFIG, muon_lr=muon_lr)

    def train_two_epochs(trainer: Trainer) -> list[Epoch]:
        return [replace(trainer.train_epoch(), seconds=0) for _ in range(2)]

    first = create_trainer(config)
    train_two_epochs(first)
    state = copy.deepcopy(first.state())
    expected = train_two_epochs(first)
    second = create_trainer(config)
    second.restore(state)
    assert second.completed_epochs == 2
    assert train_two_epochs(second) == expected
    assert is_equal(second.result.state_dict(), first.result.state_dict())


def test_auxiliary_logits_are_ignored() -> None:
    """Googlenet and inception_v3 return several logits in training; only the first are used."""
    trainers = []
    for has_auxiliary in (False, True):
        torch.manual_seed(0)
        trainers.append(create_trainer(CONFIG, TinyNetwork(has_auxiliary=has_auxiliary)))
        trainers[-1].train_epoch()
    assert is_equal(*(trainer.result.state_dict() for trainer in trainers))


def test_infinite_loss_is_an_error() -> None:
    with pytest.raises(TrainingError, match="lower --max-lr"):
        train(replace(CONFIG, max_lr=1e30))
