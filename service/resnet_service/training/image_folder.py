"""Which images there are to train and to test on: folders of classes, split with a seed where need be."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from resnet_service.errors import TrainingError

Labeled = tuple[Path, int]
"""An image and the index of its class."""

TEST_FOLDERS: Final = ("test", "val")
_SPLIT_SEED: Final = 0  # not the run's: several seeds must be tested on the same images


@dataclass(frozen=True)
class ImageFolder:
    """Labels in the order of their index, and the images of each part.

    `split` is the share of the images that was set apart for testing; None where folders say it.
    """

    labels: tuple[str, ...]
    train: tuple[Labeled, ...]
    test: tuple[Labeled, ...]
    split: float | None


def index_folder(folder: Path, test_share: float = 0.2) -> ImageFolder:
    """List the images under `folder`, which has train/CLASS and test/CLASS (or val/), or CLASS alone.

    Without test images of their own, `test_share` of each class is set apart, always the same ones. Raises
    TrainingError, naming the folder, for fewer than two classes, an empty class, or a class to test that
    is not there to train.
    """
    with _reading():
        train_folder, test_folder = _split_dirs(folder)
        if train_folder is None:
            raise TrainingError(f"{folder} has test images but no train/")
        labels = _class_names(train_folder)
        train = _images(train_folder, labels)
        if test_folder is not None:
            return ImageFolder(labels, train, _match_labels(test_folder, labels), None)
        return ImageFolder(labels, *_split(train, labels, test_share), test_share)


def index_test_folder(folder: Path, labels: tuple[str, ...], test_share: float = 1.0) -> tuple[Labeled, ...]:
    """List the test images under `folder`, which may be of some of `labels` only.

    Without test/ or val/, those that `find` sets apart with the same share, by default all. Raises
    TrainingError for a class that is not among the labels, and for an empty one.
    """
    with _reading():
        train_folder, test_folder = _split_dirs(folder)
        found = _match_labels(test_folder or train_folder or folder, labels)
    apart = test_folder is None and test_share < 1
    return _split(found, labels, test_share)[1] if apart else found


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingError(f"{error.filename} cannot be read: {error.strerror}") from error


def _split_dirs(folder: Path) -> tuple[Path | None, Path | None]:
    """Return the folders of the classes to train on and to test on; `folder` itself where it has neither."""
    if not folder.is_dir():
        raise TrainingError(f"there is no folder {folder}")
    test_folder = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if (folder / "train").is_dir() and _subfolders(folder / "train"):
        return folder / "train", test_folder
    return (None if test_folder else folder), test_folder


def _subfolders(folder: Path) -> tuple[str, ...]:
    return tuple(
        sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _hidden(entry.name))
    )


def _class_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the class folders under `folder`, sorted: their order is the class index."""
    names = _subfolders(folder)
    for name in names:
        if not is_valid_utf8(name):
            raise TrainingError(f"the class folder {name!r} in {folder} has a name that is not UTF-8")
    if len(names) < 2:
        found = f"found only {names[0]!r}" if names else "found none"
        raise TrainingError(f"{folder} needs at least two class folders, {found}")
    return names


def _match_labels(folder: Path, labels: tuple[str, ...]) -> tuple[Labeled, ...]:
    """List the images under `folder`, whose classes must be among `labels`, with the index there."""
    here = _subfolders(folder)
    if unknown := [name for name in here if name not in labels]:
        raise TrainingError(
            f"{folder} has classes that are not there to train: {', '.join(unknown[:5])}; "
            f"known are {', '.join(labels[:10])}{', ...' if len(labels) > 10 else ''}"
        )
    if not here:
        raise TrainingError(f"{folder} has no class folders")
    return tuple((path, labels.index(here[index])) for path, index in _images(folder, here))


def _images(folder: Path, labels: tuple[str, ...]) -> tuple[Labeled, ...]:
    """List the files under folder/CLASS for every class of `labels`, in order of class and path.

    Raises TrainingError for a class without any.
    """
    found: list[Labeled] = []
    for index, label in enumerate(labels):
        paths: list[Path] = []
        for parent, folders, names in os.walk(folder / label, onerror=_raise):
            folders[:] = [name for name in folders if not _hidden(name)]
            paths += [Path(parent, name) for name in names if not _hidden(name)]
        if not paths:
            raise TrainingError(f"{folder / label} holds no images")
        found += [(path, index) for path in sorted(paths)]
    return tuple(found)


def _raise(error: OSError) -> None:
    raise error


def _hidden(name: str) -> bool:
    """Say whether it is the system's, not a class or an image: .DS_Store, .ipynb_checkpoints, Thumbs.db."""
    return name.startswith(".") or name == "Thumbs.db"


def is_valid_utf8(name: str) -> bool:
    """Say whether a name from the file system can be written down elsewhere."""
    return not any("\ud800" <= sign <= "\udfff" for sign in name)  # what Python makes of other bytes


def _split(
    found: tuple[Labeled, ...], labels: tuple[str, ...], share: float
) -> tuple[tuple[Labeled, ...], tuple[Labeled, ...]]:
    train: list[Labeled] = []
    test: list[Labeled] = []
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    by_class: dict[int, list[Labeled]] = {}
    for item in found:
        by_class.setdefault(item[1], []).append(item)
    for index, label in enumerate(labels):
        ours = by_class.get(index, [])
        if not ours:
            continue
        if len(ours) < 2:
            raise TrainingError(
                f"the class {label!r} has one image, and one to train and one to test are needed"
            )
        apart = min(len(ours) - 1, max(1, round(share * len(ours))))
        chosen = set(torch.randperm(len(ours), generator=generator)[:apart].tolist())
        for position, item in enumerate(ours):
            (test if position in chosen else train).append(item)
    return tuple(train), tuple(test)
