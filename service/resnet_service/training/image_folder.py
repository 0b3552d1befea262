"""Find the training and test images in a folder that has one folder for each class."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import torch

from resnet_service.errors import TrainingError
from resnet_service.images.file_names import describe_suffixes, is_system_name, select_images
from resnet_service.models.class_folders import classes_of_folder


class ImageFile(Protocol):
    """A file in a folder, or one in a prediction log; `str` returns its name."""

    def read_bytes(self) -> bytes:
        """Return its content. Raises OSError."""
        ...


LabeledImage = tuple[ImageFile, int]
"""An image file and the index of its class."""


class LabeledFiles(NamedTuple):
    """The images of some class folders, and the files in these folders that are not images."""

    images: tuple[LabeledImage, ...]
    skipped: tuple[Path, ...] = ()


_TEST_FOLDERS: Final = ("test", "val")
_SPLIT_SEED: Final = 0  # not the run's seed: runs with different seeds must be tested on the same images


@dataclass(frozen=True)
class ImageFolder:
    """Labels, in the order of their indices, and the files for training and for testing.

    `test_share` is the share of images that was split off for testing, None if the folder has test images.
    """

    labels: tuple[str, ...]
    train: LabeledFiles
    test: LabeledFiles
    test_share: float | None


def index_folder(folder: Path, test_share: float = 0.2) -> ImageFolder:
    """List the images under `folder`, which has train/CLASS and test/CLASS (or val/CLASS), or only CLASS.

    Without test images, `test_share` of each class is split off, always the same images. Raises
    TrainingError, with the folder's name, for fewer than two classes, an empty class, or a test class
    without training images.
    """
    with _translate_os_errors():
        train_folder, test_folder = _split_dirs(folder)
        if train_folder is None:
            raise TrainingError(f"{folder} has test images but no train/")
        labels = _class_names(train_folder)
        train = _list_images(train_folder, labels)
        if test_folder is not None:
            return ImageFolder(labels, train, _match_labels(test_folder, labels), None)
        split = split_images(train.images, labels, test_share)
        return ImageFolder(labels, LabeledFiles(split[0], train.skipped), LabeledFiles(split[1]), test_share)


def index_test_folder(folder: Path, labels: tuple[str, ...], test_share: float = 1.0) -> LabeledFiles:
    """List the test images under `folder`, which may have only some of the classes in `labels`.

    Without test/ or val/, the images that `index_folder` splits off with the same share, by default all of
    them. Raises TrainingError for a folder that is not named after exactly one of `labels` (by its label or
    its WordNet id) and for an empty folder.
    """
    with _translate_os_errors():
        train_folder, test_folder = _split_dirs(folder)
        files = _match_labels(test_folder or train_folder or folder, labels)
    if test_folder is None and test_share < 1:
        return files._replace(images=split_images(files.images, labels, test_share)[1])
    return files


@contextmanager
def _translate_os_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingError(f"{error.filename} cannot be read: {error.strerror}") from error


def _split_dirs(folder: Path) -> tuple[Path | None, Path | None]:
    """Return the folders that hold the training and the test classes; `folder` itself if it has neither."""
    if not folder.is_dir():
        raise TrainingError(f"the folder {folder} does not exist")
    test_folder = next((folder / name for name in _TEST_FOLDERS if (folder / name).is_dir()), None)
    if (folder / "train").is_dir() and _subfolders(folder / "train"):
        return folder / "train", test_folder
    return (None if test_folder else folder), test_folder


def _subfolders(folder: Path) -> tuple[str, ...]:
    return tuple(
        sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_system_name(entry.name))
    )


def _class_names(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of the class folders under `folder`; their order is the class index."""
    names = _subfolders(folder)
    for name in names:
        if not is_valid_utf8(name):
            raise TrainingError(f"the name of the class folder {name!r} in {folder} is not UTF-8")
    if len(names) < 2:
        count = f"has only {names[0]!r}" if names else "has none"
        raise TrainingError(f"{folder} needs at least two class folders, but {count}")
    return names


def _match_labels(folder: Path, labels: tuple[str, ...]) -> LabeledFiles:
    """List the images under `folder` with their index in `labels`.

    Its class folders must be named after `labels` (see `classes_of_folder`), each after one of them.
    """
    names = _subfolders(folder)
    if not names:
        raise TrainingError(f"{folder} has no class folders")
    classes = match_classes(names, labels, str(folder))
    files = _list_images(folder, names)
    images = tuple((path, classes[names[folder_index]]) for path, folder_index in files.images)
    return files._replace(images=images)


def match_classes(names: Iterable[str], labels: tuple[str, ...], source: str) -> dict[str, int]:
    """Return the index in `labels` of each name of a class (see `classes_of_folder`).

    Raises TrainingError, with the name of the `source`, if one of them is not that of exactly one class.
    """
    classes = {name: classes_of_folder(name, labels) for name in names}
    if unknown := [name for name, indices in classes.items() if not indices]:
        raise TrainingError(
            f"{source} has unknown classes: {', '.join(unknown[:5])}; "
            f"the known ones are {', '.join(labels[:10])}{', ...' if len(labels) > 10 else ''}"
        )
    if ambiguous := [name for name, indices in classes.items() if len(indices) > 1]:
        raise TrainingError(
            f"{source}/{ambiguous[0]} is named after {len(classes[ambiguous[0]])} classes; "
            f"the name must be exactly that of one class"
        )
    return {name: min(indices) for name, indices in classes.items()}


def _list_images(folder: Path, labels: tuple[str, ...]) -> LabeledFiles:
    """List the images under folder/CLASS for every class in `labels`, ordered by class and path.

    Raises TrainingError for an empty class.
    """
    images: list[LabeledImage] = []
    skipped: list[Path] = []
    for index, label in enumerate(labels):
        walk = os.walk(folder / label, onerror=_raise)
        files = (Path(parent, name) for parent, _, names in walk for name in names)
        paths, others = select_images(files, folder / label)
        if not paths:
            raise TrainingError(f"{folder / label} contains no images ({describe_suffixes()})")
        images += [(path, index) for path in paths]
        skipped += others
    return LabeledFiles(tuple(images), tuple(skipped))


def _raise(error: OSError) -> None:
    raise error


def is_valid_utf8(name: str) -> bool:
    """Return whether a file name is UTF-8, so that JSON and safetensors can hold it."""
    return not any("\ud800" <= char <= "\udfff" for char in name)  # Python's surrogates for other bytes


def split_images(
    images: tuple[LabeledImage, ...], labels: tuple[str, ...], test_share: float
) -> tuple[tuple[LabeledImage, ...], tuple[LabeledImage, ...]]:
    """Split `images` into training and test images, class by class, with a fixed seed.

    Raises TrainingError for a class with one image.
    """
    train: list[LabeledImage] = []
    test: list[LabeledImage] = []
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    by_class: dict[int, list[LabeledImage]] = {}
    for image in images:
        by_class.setdefault(image[1], []).append(image)
    for index, label in enumerate(labels):
        of_class = by_class.get(index, [])
        if not of_class:
            continue
        if len(of_class) < 2:
            raise TrainingError(f"the class {label!r} has one image; training and testing need one each")
        test_count = min(len(of_class) - 1, max(1, round(test_share * len(of_class))))
        test_positions = set(torch.randperm(len(of_class), generator=generator)[:test_count].tolist())
        for position, image in enumerate(of_class):
            (test if position in test_positions else train).append(image)
    return tuple(train), tuple(test)
