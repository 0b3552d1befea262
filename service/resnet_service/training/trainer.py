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
    """What decides the result of a run, beside the data and the network.

    `max_lr` is OneCycleLR's peak for the given batch size under SGD, whose `momentum` and `weight_decay` the
    others are; `muon_lr` is the peak for the kernels of convolutions under Muon, 0 leaves them to SGD. `ema`
    is the share of the averaged weights that each step keeps, less in runs of few steps; 0 trains without an
    average. `shift` and `cutout` are shares of the image's side. `progressive` trains the first third of
    the epochs on images of half the side and the second on three quarters.
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

    def size(self, epoch: int, full: int) -> int:
        """Return the side in pixels of the images in `epoch` (from 1), `full` in the last ones."""
        if not self.progressive or 3 * epoch > 2 * self.epochs:
            return full
        return full // 2 if 3 * epoch <= self.epochs else full * 3 // 4


@dataclass(frozen=True)
class Epoch:
    """One epoch's figures.

    The mean loss and accuracy (0..1) over augmented training images of `size` pixels, the accuracy over
    test images of full size, the learning rate at its end, and seconds of training and testing.
    """

    number: int
    size: int
    learning_rate: float
    loss: float
    train_accuracy: float
    accuracy: float
    seconds: float


class Step(NamedTuple):
    """What the progress bar shows: tensors on the device, so that looking at them costs only when done."""

    epoch: int
    size: int
    loss: Tensor
    right: Tensor
    learning_rate: float


class Normalize(nn.Module):
    """uint8 [N, 3, S, S] -> float of mean 0 and deviation 1, channel by channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, S, S] uint8 -> [N, 3, S, S] float."""
        return (images - self.mean) / self.std


class Trainer:
    """One run: a network, its average, its optimizer and its random numbers, an epoch at a time.

    Between epochs `state` holds all that the next ones depend on: a trainer that was given it by `restore`
    goes on to the same result, to the bit on a CPU with as many threads.
    """

    def __init__(
        self,
        network: nn.Module,
        normalize: Normalize,
        train_set: Dataset,
        test_set: Dataset,
        options: TrainingConfig,
        *,
        device: torch.device,
        autocast: torch.dtype | None = None,
        frozen: bool = False,
        compiled: bool = False,
    ) -> None:
        """Prepare a run on `device`; `autocast` None trains in fp32, `frozen` leaves batch norm as it is."""
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.options = options
        self._normalize = normalize.to(device)
        self._train_set, self._test_set = train_set.maybe_to_device(device), test_set.maybe_to_device(device)
        self._device, self._autocast, self._frozen = device, autocast, frozen
        # Whole batches only: batch norm's statistics of a small remainder would be noise.
        self._batch_size = min(options.batch_size, len(train_set))
        self.steps = len(train_set) // self._batch_size
        total_steps = max(3, options.epochs * self.steps)
        self._forward: Callable[[Tensor], Any] = torch.compile(network) if compiled else network
        # An average over more than a tenth of a short run would be one of its beginnings.
        keep = max(0.0, min(options.ema, 1 - 10 / total_steps))
        self._average = (
            AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(keep), use_buffers=True)
            if options.ema
            else None
        )
        self._generator = torch.Generator().manual_seed(options.seed)
        # Half of the images begin as mirror images, and each is turned over every epoch, so that two epochs
        # show both sides of all. By chance one in two would look the same again: Jordan (2024), section 3.6.
        self._mirrored_first = torch.randint(2, (len(train_set),), generator=self._generator)
        self._optimization = OptimizerGroup(
            network,
            max_lr=options.max_lr,
            muon_lr=options.muon_lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            total_steps=total_steps,
        )
        self.finished = 0

    @property
    def trained(self) -> nn.Module:
        """The network to test and to keep: the average where there is one."""
        return self.network if self._average is None else self._average.module

    def epoch(self, on_step: Callable[[Step], None] = lambda _: None) -> Epoch:
        """Train and test for one epoch; `on_step` is called after each step.

        Raises TrainingError where the loss stops being a number.
        """
        started = time.perf_counter()
        number, options = self.finished + 1, self.options
        size = options.size(number, self._train_set.images.shape[-1])
        self.network.train(not self._frozen)
        loss_sum = torch.zeros((), device=self._device)
        right_sum = torch.zeros((), device=self._device)
        order = torch.randperm(len(self._train_set), generator=self._generator)
        for indices in order[: self.steps * self._batch_size].split(self._batch_size):
            mirrored = (self._mirrored_first[indices] + number) % 2 == 0 if options.flip else None
            loss, right = self._step(*self._train_set.gather(indices, self._device), mirrored, size)
            loss_sum += loss
            right_sum += right
            on_step(Step(number, size, loss, right, self._optimization.learning_rate))
        if not loss_sum.isfinite():
            raise TrainingError(f"the loss of epoch {number} is not a number; lower --max-lr")
        accuracy = self._test()
        self.finished = number
        return Epoch(
            number,
            size,
            learning_rate=self._optimization.learning_rate,
            loss=loss_sum.item() / self.steps,
            train_accuracy=right_sum.item() / self.steps,
            accuracy=accuracy,
            seconds=time.perf_counter() - started,
        )

    def _step(
        self, images: Tensor, targets: Tensor, mirrored: Tensor | None, size: int
    ) -> tuple[Tensor, Tensor]:
        """Take one step of the optimizer and return the loss and the share of right answers."""
        options = self.options
        images = augment(
            self._normalize(images),
            self._generator,
            mirrored=mirrored,
            shift=options.shift,
            cutout=options.cutout,
        )
        images = resize(images, size).contiguous(memory_format=torch.channels_last)
        with self._autocasting():
            logits = self._forward(images)
            if not isinstance(logits, Tensor):
                logits = logits[0]  # googlenet and inception add auxiliary ones
            loss = functional.cross_entropy(logits, targets, label_smoothing=options.label_smoothing)
        self._optimization.zero_grad()
        loss.backward()
        self._optimization.step()
        if self._average is not None:
            self._average.update_parameters(self.network)
        return loss.detach(), (logits.detach().argmax(1) == targets).float().mean()

    @torch.inference_mode()
    def _test(self) -> float:
        """Return the accuracy on the test images, 0..1."""
        network = self.trained.eval()
        right = 0
        for indices in torch.arange(len(self._test_set)).split(self._batch_size):
            images, targets = self._test_set.gather(indices, self._device)
            images = self._normalize(images).contiguous(memory_format=torch.channels_last)
            with self._autocasting():
                right += int((network(images).argmax(1) == targets).sum())
        return right / len(self._test_set)

    def _autocasting(self) -> torch.autocast:
        return torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None)

    def state(self) -> dict[str, Any]:
        """Return what the epochs to come depend on: tensors and plain values."""
        return {
            "finished": self.finished,
            "network": self.network.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "optimization": self._optimization.state(),
            "order": self._generator.get_state(),
            "dropout": torch.get_rng_state(),
            "dropout_cuda": torch.cuda.get_rng_state_all() if self._device.type == "cuda" else [],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken, in a trainer made with the same arguments."""
        self.network.load_state_dict(state["network"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self._optimization.restore(state["optimization"])
        self._generator.set_state(state["order"])
        torch.set_rng_state(state["dropout"])
        if state["dropout_cuda"]:
            torch.cuda.set_rng_state_all(state["dropout_cuda"])
        self.finished = state["finished"]
