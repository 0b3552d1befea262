"""Labeled images as uint8 tensors in memory, decoded once.

Images take the same road as in serving (`resnet_service.images.decode`), so a model is trained on exactly what it
will be served.
"""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final, Self
from urllib.error import HTTPError

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.datasets import CIFAR10
from torchvision.transforms.functional import center_crop
from tqdm import tqdm

from resnet_service.errors import ServiceError, TrainingError
from resnet_service.files import app_cache_dir
from resnet_service.images import Crop, Preprocessing, decode_image
from resnet_service.machine import available_cpus, available_memory
from resnet_service.models.weights import connection_timeout
from resnet_service.training import image_folder
from resnet_service.training.image_folder import Labeled

_SLICE: Final = 512


@dataclass(frozen=True)
class Dataset:
    """Images [N, 3, S, S] uint8, channels last in memory, and class indices [N] int64.

    `unreadable` are the images that were skipped, by path, with the reason.
    """

    images: Tensor
    targets: Tensor
    unreadable: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.targets)

    def maybe_to_device(self, device: torch.device) -> Self:
        """Return it on a GPU with room for it four times over, and as it is for any other device."""
        if device.type != "cuda" or 4 * self.images.nbytes > torch.cuda.mem_get_info(device)[0]:
            return self
        return replace(self, images=self.images.to(device), targets=self.targets.to(device))

    def gather(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the images and targets at `indices`, which are on the CPU, on `device`."""
        indices = indices.to(self.targets.device)
        return self.images[indices].to(device), self.targets[indices].to(device)


@dataclass(frozen=True)
class TrainTestData:
    """What a run is trained and tested on. `name` is for people; `split` as in `ImageFolder`."""

    name: str
    labels: tuple[str, ...]
    train: Dataset
    test: Dataset
    split: float | None = None

    def digest(self) -> str:
        """Return a SHA-256 of labels, targets and images: what has the same one trains the same."""
        digest = hashlib.sha256(repr(self.labels).encode())
        for part in (self.train, self.test):
            digest.update(part.targets.numpy().tobytes())
            for images in part.images.permute(0, 2, 3, 1).split(1000):
                digest.update(images.numpy().tobytes())
        return digest.hexdigest()


def load_dataset(source: str, preprocessing: Preprocessing, *, test_share: float = 0.2) -> TrainTestData:
    """Read `source`: "cifar10", downloaded once by torchvision, or a folder as `layout.find` describes.

    Raises TrainingError where it cannot be had or cannot be trained on.
    """
    if source == "cifar10":
        labels, train = _cifar10(preprocessing, train=True)
        return TrainTestData("cifar10", labels, train, _cifar10(preprocessing, train=False)[1])
    folder = Path(source)
    if not image_folder.is_valid_utf8(str(folder.absolute())):
        raise TrainingError(f"the folder {source!r} has a name that is not UTF-8")
    found = image_folder.index_folder(folder, test_share)
    return TrainTestData(
        folder.resolve().name,
        found.labels,
        read_images(found.train, found.labels, preprocessing, "reading the training images"),
        read_images(found.test, found.labels, preprocessing, "reading the test images"),
        found.split,
    )


def load_test_dataset(
    source: str, labels: tuple[str, ...], preprocessing: Preprocessing, *, test_share: float = 1.0
) -> Dataset:
    """Read the test images of `source`, as for `load`, with targets that are indices of `labels`."""
    if source == "cifar10":
        known, dataset = _cifar10(preprocessing, train=False)
        if known != labels:
            raise TrainingError(f"the model's classes are not CIFAR-10's: {', '.join(labels[:10])}")
        return dataset
    found = image_folder.index_test_folder(Path(source), labels, test_share)
    return read_images(found, labels, preprocessing, "reading the test images")


def read_images(
    images: Sequence[Labeled], labels: tuple[str, ...], preprocessing: Preprocessing, title: str
) -> Dataset:
    """Decode `images` on every core, in their order, skipping those that cannot be decoded.

    Raises TrainingError, naming some, where a class has no readable one.
    """
    crops = _allocate((len(images), preprocessing.crop, preprocessing.crop, 3))
    targets: list[int] = []
    unreadable: dict[str, str] = {}
    decode = partial(_decode_file, preprocessing=preprocessing)
    with ThreadPoolExecutor(available_cpus()) as pool, tqdm(total=len(images), desc=title) as bar:
        for start in range(0, len(images), _SLICE):  # what is decoded ahead of its use stays small
            some = images[start : start + _SLICE]
            decoded = pool.map(decode, (path for path, _ in some))
            for (path, target), crop in zip(some, decoded, strict=True):
                bar.update()
                if isinstance(crop, str):
                    unreadable[str(path)] = crop
                else:
                    crops[len(targets)] = crop
                    targets.append(target)
    for target in sorted({target for _, target in images} - set(targets)):
        path, reason = next((path, unreadable[str(path)]) for path, index in images if index == target)
        raise TrainingError(f"no image of {labels[target]!r} can be read; {path}: {reason}")
    kept = torch.from_numpy(crops[: len(targets)]).permute(0, 3, 1, 2)
    return Dataset(kept, torch.tensor(targets), unreadable)


def _decode_file(path: Path, preprocessing: Preprocessing) -> Crop | str:
    """Decode one file, or say why not."""
    try:
        return decode_image(path.read_bytes(), preprocessing)
    except ServiceError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _allocate(shape: tuple[int, int, int, int]) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """Make room for images: in memory where they take less than half of what is free, else in a file."""
    size = math.prod(shape)
    free = available_memory()
    if free is None or size < free / 2:
        return np.empty(shape, np.uint8)
    try:
        folder = app_cache_dir()  # not the usual temporary folder, which often is memory itself
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:  # it has no name; the mapping keeps it
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # or a full disk would end the process later
            return np.memmap(file, np.uint8, "w+", shape=shape)
    except OSError as error:
        raise TrainingError(
            f"the images need {size / 1e9:.1f} GB, which neither memory nor {folder} has: {error.strerror}"
        ) from error


def _cifar10(preprocessing: Preprocessing, *, train: bool) -> tuple[tuple[str, ...], Dataset]:
    """Return CIFAR-10's labels and one of its parts, fetched first where it is not there yet."""
    folder = app_cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with connection_timeout():
            part = CIFAR10(folder, train=train, download=True)
    # RuntimeError: what came has another hash.
    except (OSError, HTTPException, RuntimeError) as error:
        if isinstance(error, HTTPError):
            error.close()  # it is the response too, with its connection
        raise TrainingError(
            f"CIFAR-10 could not be downloaded into {folder}: {error}; put cifar-10-python.tar.gz there, or "
            "give --data a folder with train/CLASS and test/CLASS"
        ) from error
    return tuple(part.classes), Dataset(_resized(part.data, preprocessing), torch.tensor(part.targets))


def _resized(images: Crop, preprocessing: Preprocessing) -> Tensor:
    """[N, 32, 32, 3] uint8 -> [N, 3, S, S] uint8, resized and cropped as `decode_image` does."""
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    size, crop = preprocessing.resize, preprocessing.crop
    if tensor.shape[-1] == size == crop:
        return tensor
    kept = torch.from_numpy(_allocate((len(tensor), crop, crop, 3))).permute(0, 3, 1, 2)
    for start in range(0, len(tensor), _SLICE):
        resized = functional.interpolate(
            tensor[start : start + _SLICE].float(),
            (size, size),
            mode=preprocessing.interpolation,
            antialias=True,
        )
        kept[start : start + _SLICE] = center_crop(resized.round().clamp(0, 255), [crop, crop])
    return kept
