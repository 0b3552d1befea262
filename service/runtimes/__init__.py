"""How a model is executed: one Protocol, one module for each runtime."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from service.images import Crop


@dataclass(frozen=True)
class TopK:
    """The best classes of each picture, best first: `class_ids` [N, k] int64, `probabilities` [N, k] fp32."""

    class_ids: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]


class Runtime(Protocol):
    """A model on a device. All calls come from the one thread that owns the device.

    `name` is the runtime's own ("torch"), `device` and `precision` are those in use.
    """

    name: str
    device: str
    precision: str

    def run(self, crops: Sequence[Crop], k: int) -> TopK:
        """Classify a batch of crops [S, S, 3] uint8 and return once the device has finished.

        Raises DeviceOutOfMemory where the batch does not fit, and DeviceFailed where the device will not
        work again in this process.
        """
        ...

    def memory_bytes(self) -> int | None:
        """Return the bytes this process holds on the device; None where it has no memory of its own."""
        ...
