"""The interface of a runtime, which executes a model on a device, and what all runtimes share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from resnet_service.errors import InferenceError
from resnet_service.images import Crop, Preprocessing
from resnet_service.schemas import Prediction

_SMALLEST: Final = np.finfo(np.float32).tiny


@dataclass(frozen=True, slots=True)
class TopKResult:
    """The best classes of a batch [N, k] or of one image [k], best first, from the device to the response.

    Attributes:
        class_ids: int64.
        probabilities: fp32, 0 to 1.
        entropy: fp32, [N] or a scalar: how evenly the probabilities of all classes are distributed, from 0
            (one class is certain) to 1 (all are equally probable): the entropy divided by its maximum.
        device: the device that computed them, for example "cuda:0".
        embedding: fp32, [N, D] or [D]; None unless it was requested.
    """

    class_ids: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float32] | np.float32
    device: str
    embedding: npt.NDArray[np.float32] | None = None

    def images(self, with_embedding: Sequence[bool] | None = None) -> "list[TopKResult]":
        """Return the result of each image of a batch; `with_embedding` says which of them keep it."""
        rows = zip(self.class_ids, self.probabilities, np.atleast_1d(self.entropy), strict=True)
        if self.embedding is None:
            return [TopKResult(*row, self.device) for row in rows]
        kept = repeat(True) if with_embedding is None else with_embedding
        return [
            TopKResult(*row, self.device, embedding if is_kept else None)
            for row, embedding, is_kept in zip(rows, self.embedding, kept, strict=False)
        ]

    def top(self, k: int) -> "TopKResult":
        """Return the best `k` classes of an image, and its embedding if there is one.

        Raises InferenceError if one of the values is not finite.
        """
        probabilities, embedding = self.probabilities[:k], self.embedding
        is_finite = all(map(math.isfinite, probabilities.tolist()))
        if not is_finite or (embedding is not None and not np.isfinite(embedding).all()):
            raise InferenceError("the network returned a value that is not finite; try --precision fp32")
        return TopKResult(self.class_ids[:k], probabilities, self.entropy, self.device, embedding)

    def predictions(self, labels: Sequence[str]) -> tuple[Prediction, ...]:
        """Return the classes of an image with their labels; `labels` are those of all classes, by index."""
        return tuple(
            Prediction(class_id=class_id, label=labels[class_id], probability=probability)
            for class_id, probability in zip(
                self.class_ids.tolist(), self.probabilities.tolist(), strict=True
            )
        )


class DeviceMemory(NamedTuple):
    """Bytes of device memory: allocated by this process, and available on the device in total."""

    used: int
    limit: int


class Runtime(Protocol):
    """A model on a device that runs one batch at a time, from its creation to the end of the process.

    `create_runtimes` creates it. Not thread-safe: all calls must come from the same thread. `name` is the
    kind of runtime ("torch"), `device` and `precision` are those in use. `embedding_size` is the length of an
    embedding, which is the input of the classifier, the last linear layer; None without such a layer.
    """

    name: str
    device: str
    precision: str
    embedding_size: int | None

    def run(self, crops: Sequence[Crop], k: int, *, with_embeddings: bool = False) -> TopKResult:
        """Classify a batch of crops [S, S, 3] uint8 and return when the device has finished.

        The result has embeddings if they are requested and the model has them. Raises DeviceOutOfMemoryError
        if the batch does not fit into the device's memory, and DeviceError if the device cannot be used any
        more in this process.
        """
        ...

    def memory(self) -> DeviceMemory | None:
        """Return the current memory usage of the device; None if it has no memory of its own."""
        ...


def stack_crops(crops: Sequence[Crop], out: Tensor | None = None) -> Tensor:
    """Copy crops [S, S, 3] uint8 to a batch [N, S, S, 3], into `out` if it is set.

    PyTorch releases the GIL once for all crops; NumPy would release and reacquire it for each. One thread
    copies: PyTorch would divide each crop among its threads, which takes 33 us of CPU time instead of 18 us.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return torch.stack([torch.from_numpy(crop) for crop in crops], out=out)
    finally:
        torch.set_num_threads(threads)


def top_k(
    probabilities: npt.NDArray[np.float32],
    k: int,
    device: str,
    embeddings: npt.NDArray[np.float32] | None = None,
) -> TopKResult:
    """Return the best `k` of the probabilities [N, classes], which `device` has computed, as copies.

    `embeddings` [N, D], if there are any, are copied as well.
    """
    best = np.argpartition(-probabilities, k - 1, axis=1)[:, :k]
    ranked = np.take_along_axis(best, np.argsort(-np.take_along_axis(probabilities, best, 1), axis=1), 1)
    copied = None if embeddings is None else np.array(embeddings, np.float32)
    values = np.take_along_axis(probabilities, ranked, 1)
    return TopKResult(ranked, values, _entropy(probabilities), device, copied)


def _entropy(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[N, classes] -> [N], as in `TopKResult`."""
    logarithms = np.log(np.maximum(probabilities, _SMALLEST))  # 0 * log(0) is 0
    entropy: npt.NDArray[np.float32] = -np.einsum("nc,nc->n", probabilities, logarithms)
    return entropy / max_entropy(probabilities.shape[1])


def max_entropy(classes: int) -> float:
    """Return the entropy of equal probabilities, in nats; of one class, whose entropy is always 0, 1."""
    return math.log(classes) or 1.0


def normalization(preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Return mean and std, [3, 1, 1] each, for pixels of 0..255; those of `preprocessing` are for 0..1."""
    mean, std = torch.tensor([preprocessing.mean, preprocessing.std]).view(2, 3, 1, 1) * 255
    return mean, std
