"""Which pictures there are to train and to test on: folders of classes, split with a seed where need be."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from service.errors import TrainingImpossible

Labelled = tuple[Path, int]
"""A picture and the index of its class."""

TEST_FOLDERS: Final = ("test", "val")
_SPLIT_SEED: Final = 0  # not the run's: several seeds must be tested on the same pictures


@dataclass(frozen=True)
class Layout:
    """Labels in the order of their index, and the pictures of each part.

    `split` is the share of the pictures that was set apart for testing; None where folders say it.
    """

    labels: tuple[str, ...]
    train: tuple[Labelled, ...]
    test: tuple[Labelled, ...]
    split: float | None


def find(folder: Path, test_share: float = 0.2) -> Layout:
    """List the pictures under `folder`, which has train/CLASS and test/CLASS (or val/), or CLASS alone.

    Without test pictures of their own, `test_share` of each class is set apart, always the same ones. Raises
    TrainingImpossible, naming the folder, for fewer than two classes, an empty class, or a class to test that
    is not there to train.
    """
    train_folder, test_folder = _parts(folder)
    if train_folder is None:
        raise TrainingImpossible(f"{folder} has test pictures but no train/")
    labels = class_names(train_folder)
    train = pictures(train_folder, labels)
    if test_folder is not None:
        return Layout(labels, train, _known(test_folder, labels), None)
    return Layout(labels, *_split(train, labels, test_share), test_share)


def find_test(folder: Path, labels: tuple[str, ...], test_share: float = 1.0) -> tuple[Labelled, ...]:
    """List the test pictures under `folder`, which may be of some of `labels` only.

    Without test/ or val/, those that `find` sets apart with the same share, by default all. Raises
    TrainingImpossible for a class that is not among the labels, and for an empty one.
    """
    train_folder, test_folder = _parts(folder)
    if test_folder is not None:
        return _known(test_folder, labels)
    assert train_folder is not None
    found = _known(train_folder, labels)
    return _split(found, labels, test_share)[1] if test_share < 1 else found


def _parts(folder: Path) -> tuple[Path | None, Path | None]:
    """Return the folders of the classes to train on and to test on; `folder` itself where it has neither."""
    if not folder.is_dir():
        raise TrainingImpossible(f"there is no folder {folder}")
    test_folder = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if (folder / "train").is_dir():
        return folder / "train", test_folder
    return (None if test_folder else folder), test_folder


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the class folders under `folder`, sorted: their order is the class index.

    Raises TrainingImpossible where there are fewer than two.
    """
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _hidden(entry)))
    if len(names) < 2:
        found = f"found only {names[0]!r}" if names else "found none"
        raise TrainingImpossible(f"{folder} needs at least two class folders, {found}")
    return names


def _known(folder: Path, labels: tuple[str, ...]) -> tuple[Labelled, ...]:
    """List the pictures under `folder`, whose classes must be among `labels`, with the index there."""
    here = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _hidden(entry)))
    if unknown := [name for name in here if name not in labels]:
        raise TrainingImpossible(
            f"{folder} has classes that are not there to train: {', '.join(unknown[:5])}; "
            f"known are {', '.join(labels[:10])}{', ...' if len(labels) > 10 else ''}"
        )
    if not here:
        raise TrainingImpossible(f"{folder} has no class folders")
    return tuple((path, labels.index(here[index])) for path, index in pictures(folder, here))


def pictures(folder: Path, labels: tuple[str, ...]) -> tuple[Labelled, ...]:
    """List the files under folder/CLASS for every class of `labels`, in order of class and path.

    Raises TrainingImpossible for a class without any.
    """
    found: list[Labelled] = []
    for index, label in enumerate(labels):
        paths = sorted(
            path
            for path in (folder / label).rglob("*")
            if path.is_file() and not any(map(_hidden, (path, *path.relative_to(folder).parents)))
        )
        if not paths:
            raise TrainingImpossible(f"{folder / label} holds no pictures")
        found += [(path, index) for path in paths]
    return tuple(found)


def _hidden(path: Path) -> bool:
    """Say whether it is the system's, not a class or a picture: .DS_Store, .ipynb_checkpoints, Thumbs.db."""
    return path.name.startswith(".") or path.name == "Thumbs.db"


def _split(
    found: tuple[Labelled, ...], labels: tuple[str, ...], share: float
) -> tuple[tuple[Labelled, ...], tuple[Labelled, ...]]:
    train: list[Labelled] = []
    test: list[Labelled] = []
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    for index, label in enumerate(labels):
        ours = [item for item in found if item[1] == index]
        if len(ours) < 2:
            raise TrainingImpossible(
                f"the class {label!r} has one picture, and one to train and one to test are needed"
            )
        apart = min(len(ours) - 1, max(1, round(share * len(ours))))
        chosen = set(torch.randperm(len(ours), generator=generator)[:apart].tolist())
        for position, item in enumerate(ours):
            (test if position in chosen else train).append(item)
    return tuple(train), tuple(test)
