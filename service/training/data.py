"""Labelled pictures as uint8 tensors in memory, decoded once.

Pictures take the same road as in serving (`service.images.decode`), so a model is trained on exactly what it
will be served.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.datasets import CIFAR10
from tqdm import tqdm

from service import hardware, images
from service.errors import ServiceError, TrainingImpossible
from service.images import Preprocessing
from service.training import layout
from service.training.layout import Labelled


@dataclass(frozen=True)
class Dataset:
    """Pictures [N, 3, S, S] uint8, channels last in memory, and class indices [N] int64.

    `unreadable` are the pictures that were skipped, by path, with the reason.
    """

    pictures: Tensor
    targets: Tensor
    unreadable: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.targets)

    def near(self, device: torch.device) -> Self:
        """Return it on a GPU with room for it four times over, and as it is for any other device."""
        if device.type != "cuda" or 4 * self.pictures.nbytes > torch.cuda.mem_get_info(device)[0]:
            return self
        return replace(self, pictures=self.pictures.to(device), targets=self.targets.to(device))

    def take(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the pictures and targets at `indices`, which are on the CPU, on `device`."""
        indices = indices.to(self.targets.device)
        return self.pictures[indices].to(device), self.targets[indices].to(device)


@dataclass(frozen=True)
class Data:
    """What a run is trained and tested on. `name` is for people; `split` as in `Layout`."""

    name: str
    labels: tuple[str, ...]
    train: Dataset
    test: Dataset
    split: float | None = None


def load(source: str, preprocessing: Preprocessing, *, test_share: float = 0.2) -> Data:
    """Read `source`: "cifar10", downloaded once by torchvision, or a folder as `layout.find` describes.

    Raises TrainingImpossible where it cannot be had or cannot be trained on.
    """
    if source == "cifar10":
        return _cifar10(preprocessing.crop)
    folder = Path(source)
    found = layout.find(folder, test_share)
    return Data(
        folder.resolve().name,
        found.labels,
        read(found.train, found.labels, preprocessing, "reading the training pictures"),
        read(found.test, found.labels, preprocessing, "reading the test pictures"),
        found.split,
    )


def load_test(
    source: str, labels: tuple[str, ...], preprocessing: Preprocessing, *, test_share: float = 1.0
) -> Dataset:
    """Read the test pictures of `source`, as for `load`, with targets that are indices of `labels`."""
    if source == "cifar10":
        whole = _cifar10(preprocessing.crop)
        if whole.labels != labels:
            raise TrainingImpossible(f"the model's classes are not CIFAR-10's: {', '.join(labels[:10])}")
        return whole.test
    found = layout.find_test(Path(source), labels, test_share)
    return read(found, labels, preprocessing, "reading the test pictures")


def read(
    pictures: Sequence[Labelled], labels: tuple[str, ...], preprocessing: Preprocessing, title: str
) -> Dataset:
    """Decode `pictures` on every core, in their order, skipping those that cannot be decoded.

    Raises TrainingImpossible, naming some, where a class has no readable one.
    """
    crops = _allocate((len(pictures), preprocessing.crop, preprocessing.crop, 3))
    targets: list[int] = []
    unreadable: dict[str, str] = {}
    decode = partial(_decode_file, preprocessing=preprocessing)
    paths = [path for path, _ in pictures]
    with ThreadPoolExecutor(hardware.cores()) as pool:
        decoded = tqdm(pool.map(decode, paths), title, len(paths), unit="picture")
        for (path, target), crop in zip(pictures, decoded, strict=True):
            if isinstance(crop, str):
                unreadable[str(path)] = crop
            else:
                crops[len(targets)] = crop
                targets.append(target)
    for target in sorted({target for _, target in pictures} - set(targets)):
        path, reason = next((path, unreadable[str(path)]) for path, index in pictures if index == target)
        raise TrainingImpossible(f"no picture of {labels[target]!r} can be read; {path}: {reason}")
    kept = torch.from_numpy(crops[: len(targets)]).permute(0, 3, 1, 2)
    return Dataset(kept, torch.tensor(targets), unreadable)


def _decode_file(path: Path, preprocessing: Preprocessing) -> images.Crop | str:
    """Decode one file, or say why not."""
    try:
        return images.decode(path.read_bytes(), preprocessing)
    except ServiceError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _allocate(shape: tuple[int, int, int, int]) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """Make room for pictures: in memory where they take less than half of it, else in a nameless file."""
    memory_gib = hardware.fingerprint().memory_gib
    if memory_gib is None or np.prod(shape) < memory_gib * 2**30 / 2:
        return np.empty(shape, np.uint8)
    with TemporaryFile() as file:  # the mapping keeps it; the system writes out what does not fit
        return np.memmap(file, np.uint8, "w+", shape=shape)


def _cifar10(size: int) -> Data:
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "resnet-service"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        parts = [CIFAR10(folder, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:  # RuntimeError: what came has another hash
        raise TrainingImpossible(
            f"CIFAR-10 could not be downloaded into {folder}: {error}; put cifar-10-python.tar.gz there, or "
            "give --data a folder with train/CLASS and test/CLASS"
        ) from error
    train, test = (Dataset(_resized(part.data, size), torch.tensor(part.targets)) for part in parts)
    return Data("cifar10", tuple(parts[0].classes), train, test)


def _resized(pictures: images.Crop, size: int) -> Tensor:
    """[N, H, W, 3] uint8 -> [N, 3, size, size] uint8."""
    tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    if tensor.shape[-1] == size:
        return tensor
    kept = torch.from_numpy(_allocate((len(tensor), size, size, 3))).permute(0, 3, 1, 2)
    for start in range(0, len(tensor), 1000):
        kept[start : start + 1000] = functional.interpolate(
            tensor[start : start + 1000], (size, size), mode="bilinear", antialias=True
        )
    return kept
