"""Labeled images as uint8 tensors in memory, each decoded once.

Images are decoded as in serving (`resnet_service.images.decode_image`), so a model is trained on exactly the
pixels that it will be served.
"""

import hashlib
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.datasets import CIFAR10
from torchvision.transforms.functional import center_crop
from tqdm import tqdm

from resnet_service.errors import InputError, ServiceError, TrainingError
from resnet_service.files import app_cache_dir
from resnet_service.images import Crop, Preprocessing, decode_image
from resnet_service.images.file_names import NOT_AN_IMAGE, describe_suffixes, select_images
from resnet_service.machine import available_cpus, available_memory
from resnet_service.models.download import DOWNLOAD_ERRORS, download
from resnet_service.prediction_log import is_prediction_log
from resnet_service.training import image_folder, logged_images
from resnet_service.training.image_folder import ImageFile, LabeledFiles

_CHUNK_IMAGES: Final = 512


@dataclass(frozen=True)
class Dataset:
    """Images and their classes.

    Attributes:
        images: uint8 [N, 3, S, S], channels last in memory.
        targets: class indices, int64 [N].
        unreadable: path and reason of each file that was skipped.

    """

    images: Tensor
    targets: Tensor
    unreadable: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.targets)

    def maybe_to_device(self, device: torch.device) -> Self:
        """Return a copy on `device` if that is a GPU with four times the needed memory free, else `self`."""
        if device.type != "cuda" or 4 * self.images.nbytes > torch.cuda.mem_get_info(device)[0]:
            return self
        return replace(self, images=self.images.to(device), targets=self.targets.to(device))

    def gather(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the images and targets at `indices`, a tensor on the CPU, on `device`."""
        indices = indices.to(self.targets.device)
        return self.images[indices].to(device), self.targets[indices].to(device)

    def channel_statistics(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Return mean and standard deviation of each channel, of pixels in 0..1, rounded to four digits."""
        total = torch.zeros(3, dtype=torch.float64)
        squares = torch.zeros(3, dtype=torch.float64)
        for part in self.images.split(max(1, 2**22 // self.images.shape[-1] ** 2)):
            pixels = part.double() / 255
            total += pixels.mean((2, 3)).sum(0)
            squares += pixels.square().mean((2, 3)).sum(0)
        mean = total / len(self)
        std = (squares / len(self) - mean.square()).clamp(min=1e-6).sqrt()
        return _rgb(mean), _rgb(std)


def _rgb(values: Tensor) -> tuple[float, float, float]:
    red, green, blue = (round(value, 4) for value in values.tolist())
    return red, green, blue


@dataclass(frozen=True)
class TrainTestData:
    """The images of a run.

    `name` is for people. `test_share` is the share of the images that was split off for testing, None if the
    data has test images of its own.
    """

    name: str
    labels: tuple[str, ...]
    train: Dataset
    test: Dataset
    test_share: float | None = None

    def digest(self) -> str:
        """Return a SHA-256 of labels, targets and images; equal digests lead to equal runs."""
        digest = hashlib.sha256(repr(self.labels).encode())
        for part in (self.train, self.test):
            digest.update(part.targets.numpy().tobytes())
            for images in part.images.permute(0, 2, 3, 1).split(1000):
                digest.update(images.numpy().tobytes())
        return digest.hexdigest()


def load_dataset(source: str, preprocessing: Preprocessing, *, test_share: float = 0.2) -> TrainTestData:
    """Load `source`: "cifar10", which is downloaded once, a folder (`index_folder`), or a prediction log.

    Raises TrainingError if it cannot be downloaded or read, or does not fit training, and for a log what
    `index_log` raises.
    """
    if source == "cifar10":
        labels, train = _load_cifar10(preprocessing, train=True)
        return TrainTestData("cifar10", labels, train, _load_cifar10(preprocessing, train=False)[1])
    folder = Path(source)
    if not image_folder.is_valid_utf8(str(folder.absolute())):
        raise TrainingError(f"the name of the folder {source!r} is not UTF-8")
    if is_prediction_log(source):
        index = logged_images.index_log(source, test_share)
    else:
        index = image_folder.index_folder(folder, test_share)
    return TrainTestData(
        folder.resolve().name,
        index.labels,
        read_images(index.train, index.labels, preprocessing, "reading the training images"),
        read_images(index.test, index.labels, preprocessing, "reading the test images"),
        index.test_share,
    )


def load_test_dataset(
    source: str, labels: tuple[str, ...], preprocessing: Preprocessing, *, test_share: float = 1.0
) -> Dataset:
    """Load the test images of `source`, as for `load_dataset`, with targets that are indices of `labels`.

    Raises TrainingError, also for a class that is not one of `labels`, and for a log what `index_test_log`
    raises.
    """
    if source == "cifar10":
        cifar10_labels, dataset = _load_cifar10(preprocessing, train=False)
        if cifar10_labels != labels:
            raise TrainingError(f"the model's classes are not those of CIFAR-10: {', '.join(labels[:10])}")
        return dataset
    if is_prediction_log(source):
        files = logged_images.index_test_log(source, labels, test_share)
    else:
        files = image_folder.index_test_folder(Path(source), labels, test_share)
    return read_images(files, labels, preprocessing, "reading the test images")


def read_images(
    files: LabeledFiles, labels: tuple[str, ...], preprocessing: Preprocessing, title: str
) -> Dataset:
    """Decode images on all cores and return them in their order, without those that cannot be decoded.

    `title` labels the progress bar. Raises TrainingError, with an example, if a class has no readable image.
    """
    dataset = _decode_files(files, preprocessing, title)
    for target in sorted({target for _, target in files.images} - set(dataset.targets.tolist())):
        path = next(path for path, index in files.images if index == target)
        reason = dataset.unreadable[str(path)]
        raise TrainingError(f"no image of the class {labels[target]!r} is readable; {path}: {reason}")
    return dataset


def load_calibration_images(folder: Path, preprocessing: Preprocessing, samples: int = 300) -> Dataset:
    """Read up to `samples` images from `folder` and its subfolders for quantization; all targets are 0.

    The selection is evenly spaced in the sorted list of images. Raises InputError if no image is readable.
    """
    if not folder.is_dir():
        raise InputError(f"directory not found: {folder}")
    images, skipped = select_images((path for path in folder.rglob("*") if path.is_file()), folder)
    if not images:
        raise InputError(f"{folder} contains no images ({describe_suffixes()})")
    count = min(samples, len(images))
    selection = tuple((images[index * len(images) // count], 0) for index in range(count))
    dataset = _decode_files(LabeledFiles(selection, tuple(skipped)), preprocessing, "reading images")
    if not len(dataset):
        path, reason = next(iter(dataset.unreadable.items()))
        raise InputError(f"{folder} contains no readable images; {path}: {reason}")
    return dataset


def _decode_files(files: LabeledFiles, preprocessing: Preprocessing, title: str) -> Dataset:
    """Decode images on all cores and return the readable ones in their order."""
    images = files.images
    crops = _allocate((len(images), preprocessing.crop, preprocessing.crop, 3))
    targets: list[int] = []
    unreadable = dict.fromkeys(map(str, files.skipped), NOT_AN_IMAGE)
    decode = partial(_decode_file, preprocessing=preprocessing)
    with ThreadPoolExecutor(available_cpus()) as pool, tqdm(total=len(images), desc=title) as bar:
        for start in range(0, len(images), _CHUNK_IMAGES):  # bounds the crops decoded ahead of their use
            chunk = images[start : start + _CHUNK_IMAGES]
            decoded = pool.map(decode, (path for path, _ in chunk))
            for (path, target), crop in zip(chunk, decoded, strict=True):
                bar.update()
                if isinstance(crop, str):
                    unreadable[str(path)] = crop
                else:
                    crops[len(targets)] = crop
                    targets.append(target)
    readable = torch.from_numpy(crops[: len(targets)]).permute(0, 3, 1, 2)
    return Dataset(readable, torch.tensor(targets), unreadable)


def _decode_file(file: ImageFile, preprocessing: Preprocessing) -> Crop | str:
    """Return the crop of an image file, or the reason why it cannot be decoded."""
    try:
        return decode_image(file.read_bytes(), preprocessing)
    except ServiceError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _allocate(shape: tuple[int, int, int, int]) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """Allocate uint8 images in memory, or in a file if they need more than half of the free memory."""
    size = math.prod(shape)
    free = available_memory()
    if free is None or size < free / 2:
        return np.empty(shape, np.uint8)
    try:
        folder = app_cache_dir()  # not the default temporary folder, which is often in memory
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:  # anonymous; the mapping keeps its content
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # without it, a full disk ends the process later
            return np.memmap(file, np.uint8, "w+", shape=shape)
    except OSError as error:
        raise TrainingError(
            f"the images need {size / 1e9:.1f} GB, more than memory or {folder} has free: {error.strerror}"
        ) from error


def _load_cifar10(preprocessing: Preprocessing, *, train: bool) -> tuple[tuple[str, ...], Dataset]:
    """Return CIFAR-10's labels and its training or test images; downloads them if they are not cached."""
    folder = app_cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            part = CIFAR10(folder, train=train)
        except RuntimeError:  # the archive has not been extracted, or the extracted files are damaged
            download(CIFAR10.url, folder / CIFAR10.filename, known_hash=f"md5:{CIFAR10.tgz_md5}")
            part = CIFAR10(folder, train=train, download=True)  # extracts the archive
    except (*DOWNLOAD_ERRORS, RuntimeError) as error:
        raise TrainingError(
            f"CIFAR-10 could not be downloaded into {folder}: {error}; put cifar-10-python.tar.gz there, or "
            "pass --data a folder with train/CLASS and test/CLASS"
        ) from error
    return tuple(part.classes), Dataset(_resize_all(part.data, preprocessing), torch.tensor(part.targets))


def _resize_all(images: Crop, preprocessing: Preprocessing) -> Tensor:
    """Resize and crop uint8 [N, 32, 32, 3] to uint8 [N, 3, S, S], as `decode_image` does."""
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    size, crop = preprocessing.resize, preprocessing.crop
    if tensor.shape[-1] == size == crop:
        return tensor
    result = torch.from_numpy(_allocate((len(tensor), crop, crop, 3))).permute(0, 3, 1, 2)
    for start in range(0, len(tensor), _CHUNK_IMAGES):
        resized = functional.interpolate(
            tensor[start : start + _CHUNK_IMAGES].float(),
            (size, size),
            mode=preprocessing.interpolation,
            antialias=True,
        )
        result[start : start + _CHUNK_IMAGES] = center_crop(resized.round().clamp(0, 255), [crop, crop])
    return result
