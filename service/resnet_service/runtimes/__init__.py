"""How a model is executed: one Protocol, one module for each runtime."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from resnet_service.images import Crop, Preprocessing


@dataclass(frozen=True)
class TopKResult:
    """The best classes of each image, best first: `class_ids` [N, k] int64, `probabilities` [N, k] fp32."""

    class_ids: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]


class DeviceMemory(NamedTuple):
    """Bytes that this process holds on the device, and how many the device has."""

    held: int
    limit: int


def stack_crops(crops: Sequence[Crop], out: Tensor | None = None) -> Tensor:
    """Put crops together, [N, S, S, 3] uint8, in `out` where that is given.

    With torch, which gives the GIL away once; NumPy does for each crop, and waits to have it back.
    """
    return torch.stack([torch.from_numpy(crop) for crop in crops], out=out)


def normalization(preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Return mean and std, [3, 1, 1], for images of 0..255: those of the preprocessing are for 0..1."""
    mean, std = torch.tensor([preprocessing.mean, preprocessing.std]).view(2, 3, 1, 1) * 255
    return mean, std


class Runtime(Protocol):
    """A model on a device, for one batch at a time. All calls come from one thread, its own.

    `name` is the runtime's own ("torch"), `device` and `precision` are those in use.
    """

    name: str
    device: str
    precision: str

    def run(self, crops: Sequence[Crop], k: int) -> TopKResult:
        """Classify a batch of crops [S, S, 3] uint8 and return once the device has finished.

        Raises DeviceOutOfMemoryError where the batch does not fit, and DeviceError where the device will not
        work again in this process.
        """
        ...

    def memory(self) -> DeviceMemory | None:
        """Return the device's memory as it is now; None where it has none of its own."""
        ...
