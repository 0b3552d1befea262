"""Train one network on images in memory, augmented in batches on the device.

Reads and writes no files; `resnet_service.training.run` does.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from resnet_service.errors import TrainingError
from resnet_service.training.augmentation import augment, resize
from resnet_service.training.data import Dataset
from resnet_service.training.optimizers import OptimizerGroup


@dataclass(frozen=True)
class TrainingConfig:
    """Hyperparameters: with the data and the network they determine the result of a run.

    Attributes:
        epochs: passes over the training images.
        batch_size: images in one step.
        max_lr: peak learning rate of OneCycleLR for SGD, at this batch size.
        muon_lr: peak learning rate of Muon for convolution kernels; 0 trains them with SGD.
        momentum: Nesterov momentum of SGD; 0 turns it off.
        weight_decay: weight decay of SGD.
        label_smoothing: 0 (none) to 1.
        ema: decay of the weights' exponential moving average per step, lower in runs with few steps;
            0 trains without an average.
        flip: mirror each image in every other epoch.
        shift: largest shift, as a share of the image's side.
        cutout: side of the gray square, as a share of the image's side.
        progressive: train the first third of the epochs on images of half the side and the second third
            on three quarters.
        seed: of every random number, 0 or more.

    """

    epochs: int = 16
    batch_size: int = 128
    max_lr: float = 0.1
    muon_lr: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    ema: float = 0.995
    flip: bool = True
    shift: float = 0.125
    cutout: float = 0.0
    progressive: bool = False
    seed: int = 1

    def size(self, epoch: int, full_size: int) -> int:
        """Return the side, in pixels, of the training images in `epoch` (1 is the first)."""
        if not self.progressive or 3 * epoch > 2 * self.epochs:
            return full_size
        return full_size // 2 if 3 * epoch <= self.epochs else full_size * 3 // 4


@dataclass(frozen=True)
class Epoch:
    """Results of one epoch.

    Attributes:
        number: 1 for the first epoch.
        size: side of the training images in pixels.
        learning_rate: of SGD at the end of the epoch.
        loss: mean over the augmented training images.
        train_accuracy: 0..1, over the augmented training images.
        accuracy: 0..1, over the test images at full size.
        seconds: duration of training and testing.

    """

    number: int
    size: int
    learning_rate: float
    loss: float
    train_accuracy: float
    accuracy: float
    seconds: float


class Step(NamedTuple):
    """Results of one optimizer step, for a progress bar.

    `loss` and `accuracy` are tensors on the device: reading their values waits for the device, so read them
    only when they are displayed.
    """

    epoch: int
    size: int
    loss: Tensor
    accuracy: Tensor
    learning_rate: float


class Normalize(nn.Module):
    """Convert uint8 images [N, 3, S, S] to float with mean 0 and standard deviation 1 per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        """Return float [N, 3, S, S] for uint8 [N, 3, S, S]."""
        return (images - self.mean) / self.std


class Trainer:
    """Trains a network one epoch at a time; holds its weights, their average, optimizers and random numbers.

        trainer = Trainer(network, normalize, train_set, test_set, TrainingConfig(), device=device)
        while trainer.completed_epochs < config.epochs:
            epoch = trainer.train_epoch()

    Lives as long as the run. Between epochs `state` returns everything that later epochs depend on: a trainer
    built with the same arguments and passed this state by `restore` ends with the same weights, identical to
    the bit on a CPU with the same number of threads.
    """

    def __init__(
        self,
        network: nn.Module,
        normalize: Normalize,
        train_set: Dataset,
        test_set: Dataset,
        config: TrainingConfig,
        *,
        device: torch.device,
        autocast: torch.dtype | None = None,
        frozen: bool = False,
        compiled: bool = False,
    ) -> None:
        """Prepare a run on `device`.

        `autocast` None trains in fp32, `frozen` leaves the statistics of batch norm unchanged, `compiled`
        uses torch.compile.
        """
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.completed_epochs = 0
        self._config = config
        self._normalize = normalize.to(device)
        self._train_set, self._test_set = train_set.maybe_to_device(device), test_set.maybe_to_device(device)
        self._device, self._autocast_dtype, self._frozen = device, autocast, frozen
        # Full batches only: batch norm's statistics over a small remainder would be noise.
        self._batch_size = min(config.batch_size, len(train_set))
        self.steps_per_epoch = len(train_set) // self._batch_size
        total_steps = max(3, config.epochs * self.steps_per_epoch)
        self._forward: Callable[[Tensor], Any] = torch.compile(network) if compiled else network
        # An average over more than a tenth of a short run would mostly consist of its untrained weights.
        decay = max(0.0, min(config.ema, 1 - 10 / total_steps))
        self._average = (
            AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
            if config.ema
            else None
        )
        self._generator = torch.Generator().manual_seed(config.seed)
        # Half of the images start mirrored, and each is flipped every epoch, so two epochs show both sides of
        # all images. With random flips, half of them would look the same twice: Jordan (2024), section 3.6.
        self._mirrored_first = torch.randint(2, (len(train_set),), generator=self._generator)
        self._optimizers = OptimizerGroup(
            network,
            max_lr=config.max_lr,
            muon_lr=config.muon_lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            total_steps=total_steps,
        )

    @property
    def result(self) -> nn.Module:
        """The network to test and to save: the weight average if the run has one."""
        return self.network if self._average is None else self._average.module

    def train_epoch(self, on_step: Callable[[Step], None] = lambda _: None) -> Epoch:
        """Train and test for one epoch; `on_step` is called after each step.

        Raises TrainingError if the loss becomes NaN or infinite.
        """
        started = time.perf_counter()
        number = self.completed_epochs + 1
        size = self._config.size(number, self._train_set.images.shape[-1])
        self.network.train(not self._frozen)
        loss_sum = torch.zeros((), device=self._device)
        accuracy_sum = torch.zeros((), device=self._device)
        order = torch.randperm(len(self._train_set), generator=self._generator)
        for indices in order[: self.steps_per_epoch * self._batch_size].split(self._batch_size):
            mirrored = (self._mirrored_first[indices] + number) % 2 == 0 if self._config.flip else None
            images, targets = self._train_set.gather(indices, self._device)
            loss, accuracy = self._train_step(images, targets, mirrored, size)
            loss_sum += loss
            accuracy_sum += accuracy
            on_step(Step(number, size, loss, accuracy, self._optimizers.learning_rate))
        if not loss_sum.isfinite():
            raise TrainingError(f"the loss of epoch {number} is not a finite number; lower --max-lr")
        test_accuracy = self._test()
        self.completed_epochs = number
        return Epoch(
            number,
            size,
            learning_rate=self._optimizers.learning_rate,
            loss=loss_sum.item() / self.steps_per_epoch,
            train_accuracy=accuracy_sum.item() / self.steps_per_epoch,
            accuracy=test_accuracy,
            seconds=time.perf_counter() - started,
        )

    def _train_step(
        self, images: Tensor, targets: Tensor, mirrored: Tensor | None, size: int
    ) -> tuple[Tensor, Tensor]:
        """Take one optimizer step and return the loss and the accuracy, 0..1, over the batch."""
        config = self._config
        images = augment(
            self._normalize(images),
            self._generator,
            mirrored=mirrored,
            shift=config.shift,
            cutout=config.cutout,
        )
        images = resize(images, size).contiguous(memory_format=torch.channels_last)
        with self._autocast():
            logits = self._forward(images)
            if not isinstance(logits, Tensor):
                logits = logits[0]  # googlenet and inception add auxiliary outputs
            loss = functional.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
        self._optimizers.zero_grad()
        loss.backward()
        self._optimizers.step()
        if self._average is not None:
            self._average.update_parameters(self.network)
        return loss.detach(), (logits.detach().argmax(1) == targets).float().mean()

    @torch.inference_mode()
    def _test(self) -> float:
        """Return the accuracy on the test images, 0..1."""
        network = self.result.eval()
        correct = 0
        for indices in torch.arange(len(self._test_set)).split(self._batch_size):
            images, targets = self._test_set.gather(indices, self._device)
            images = self._normalize(images).contiguous(memory_format=torch.channels_last)
            with self._autocast():
                correct += int((network(images).argmax(1) == targets).sum())
        return correct / len(self._test_set)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self._device.type, self._autocast_dtype, enabled=self._autocast_dtype is not None
        )

    def state(self) -> dict[str, Any]:
        """Return everything that later epochs depend on, as tensors and plain values."""
        return {
            "completed_epochs": self.completed_epochs,
            "network": self.network.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "optimizers": self._optimizers.state(),
            "generator": self._generator.get_state(),
            "torch_rng": torch.get_rng_state(),  # dropout
            "cuda_rng": torch.cuda.get_rng_state_all() if self._device.type == "cuda" else [],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`, which a trainer built with the same arguments has returned."""
        self.network.load_state_dict(state["network"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self._optimizers.restore(state["optimizers"])
        self._generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        self.completed_epochs = state["completed_epochs"]
