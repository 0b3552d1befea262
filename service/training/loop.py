"""Train one network on pictures in memory: SGD under OneCycleLR, augmentation on the device.

Reads and writes no files; `service.training.run` does.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from service.errors import TrainingImpossible
from service.training.data import Dataset, augment


@dataclass(frozen=True)
class Options:
    """What decides the result of a run. `max_lr` is OneCycleLR's peak for the given batch size."""

    epochs: int = 24
    batch_size: int = 256
    max_lr: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    seed: int = 1


@dataclass(frozen=True)
class Epoch:
    """One epoch's figures: mean training loss, test accuracy 0..1, seconds of training and of testing."""

    number: int
    loss: float
    accuracy: float
    seconds: float


class Normalise(nn.Module):
    """uint8 [N, 3, S, S] -> float of mean 0 and deviation 1, channel by channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255)

    def forward(self, pictures: Tensor) -> Tensor:
        """[N, 3, S, S] uint8 -> [N, 3, S, S] float."""
        return (pictures - self.mean) / self.std


def train(
    network: nn.Module,
    normalise: Normalise,
    train_set: Dataset,
    test_set: Dataset,
    options: Options,
    *,
    device: torch.device,
    autocast: torch.dtype | None,
) -> Iterator[Epoch]:
    """Train `network` in place and yield each epoch's figures; `autocast` None trains in fp32.

    Raises TrainingImpossible where the loss stops being a number.
    """
    network.to(device).to(memory_format=torch.channels_last)
    normalise.to(device)
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=options.max_lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        nesterov=True,
    )
    # Whole batches only: batch norm's statistics of a small remainder would be noise.
    batch_size = min(options.batch_size, len(train_set))
    steps = len(train_set) // batch_size
    total_steps = max(3, options.epochs * steps)
    # A quarter of the run warms up, but two steps at least: OneCycleLR divides by zero after one.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        options.max_lr,
        total_steps=total_steps,
        pct_start=min(0.5, max(0.25, 2 / total_steps)),
    )
    for number in range(1, options.epochs + 1):
        started = time.perf_counter()
        network.train()
        order = torch.randperm(len(train_set), generator=generator)[: steps * batch_size]
        total = torch.zeros((), device=device)
        batches = tqdm(order.split(batch_size), f"epoch {number}/{options.epochs}", leave=False)
        for indices in batches:
            pictures = augment(normalise(train_set.pictures[indices].to(device)), generator)
            targets = train_set.targets[indices].to(device)
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                logits = network(pictures.contiguous(memory_format=torch.channels_last))
                loss = functional.cross_entropy(logits, targets, label_smoothing=options.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        if not total.isfinite():
            raise TrainingImpossible(f"the loss of epoch {number} is not a number; lower the learning rate")
        right = predictions(network, normalise, test_set, device=device) == test_set.targets
        yield Epoch(
            number,
            loss=total.item() / steps,
            accuracy=right.float().mean().item(),
            seconds=time.perf_counter() - started,
        )


@torch.inference_mode()
def predictions(
    network: nn.Module, normalise: Normalise, dataset: Dataset, *, device: torch.device, batch_size: int = 500
) -> Tensor:
    """Return the predicted class of every picture, [N] int64 on the CPU, in fp32."""
    network.eval()
    return torch.cat(
        [network(normalise(part.to(device))).argmax(1).cpu() for part in dataset.pictures.split(batch_size)]
    )
