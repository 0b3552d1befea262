"""Which pictures there are to train and to test on: folders of classes, split with a seed where need be."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
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
    with _reading():
        train_folder, test_folder = _parts(folder)
        if train_folder is None:
            raise TrainingImpossible(f"{folder} has test pictures but no train/")
        labels = _class_names(train_folder)
        train = _pictures(train_folder, labels)
        if test_folder is not None:
            return Layout(labels, train, _known(test_folder, labels), None)
        return Layout(labels, *_split(train, labels, test_share), test_share)


def find_test(folder: Path, labels: tuple[str, ...], test_share: float = 1.0) -> tuple[Labelled, ...]:
    """List the test pictures under `folder`, which may be of some of `labels` only.

    Without test/ or val/, those that `find` sets apart with the same share, by default all. Raises
    TrainingImpossible for a class that is not among the labels, and for an empty one.
    """
    with _reading():
        train_folder, test_folder = _parts(folder)
        found = _known(test_folder or train_folder or folder, labels)
    apart = test_folder is None and test_share < 1
    return _split(found, labels, test_share)[1] if apart else found


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingImpossible(f"{error.filename} cannot be read: {error.strerror}") from error


def _parts(folder: Path) -> tuple[Path | None, Path | None]:
    """Return the folders of the classes to train on and to test on; `folder` itself where it has neither."""
    if not folder.is_dir():
        raise TrainingImpossible(f"there is no folder {folder}")
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
        if not utf8(name):
            raise TrainingImpossible(f"the class folder {name!r} in {folder} has a name that is not UTF-8")
    if len(names) < 2:
        found = f"found only {names[0]!r}" if names else "found none"
        raise TrainingImpossible(f"{folder} needs at least two class folders, {found}")
    return names


def _known(folder: Path, labels: tuple[str, ...]) -> tuple[Labelled, ...]:
    """List the pictures under `folder`, whose classes must be among `labels`, with the index there."""
    here = _subfolders(folder)
    if unknown := [name for name in here if name not in labels]:
        raise TrainingImpossible(
            f"{folder} has classes that are not there to train: {', '.join(unknown[:5])}; "
            f"known are {', '.join(labels[:10])}{', ...' if len(labels) > 10 else ''}"
        )
    if not here:
        raise TrainingImpossible(f"{folder} has no class folders")
    return tuple((path, labels.index(here[index])) for path, index in _pictures(folder, here))


def _pictures(folder: Path, labels: tuple[str, ...]) -> tuple[Labelled, ...]:
    """List the files under folder/CLASS for every class of `labels`, in order of class and path.

    Raises TrainingImpossible for a class without any.
    """
    found: list[Labelled] = []
    for index, label in enumerate(labels):
        paths: list[Path] = []
        for parent, folders, names in os.walk(folder / label, onerror=_raise):
            folders[:] = [name for name in folders if not _hidden(name)]
            paths += [Path(parent, name) for name in names if not _hidden(name)]
        if not paths:
            raise TrainingImpossible(f"{folder / label} holds no pictures")
        found += [(path, index) for path in sorted(paths)]
    return tuple(found)


def _raise(error: OSError) -> None:
    raise error


def _hidden(name: str) -> bool:
    """Say whether it is the system's, not a class or a picture: .DS_Store, .ipynb_checkpoints, Thumbs.db."""
    return name.startswith(".") or name == "Thumbs.db"


def utf8(name: str) -> bool:
    """Say whether a name from the file system can be written down elsewhere."""
    return not any("\ud800" <= sign <= "\udfff" for sign in name)  # what Python makes of other bytes


def _split(
    found: tuple[Labelled, ...], labels: tuple[str, ...], share: float
) -> tuple[tuple[Labelled, ...], tuple[Labelled, ...]]:
    train: list[Labelled] = []
    test: list[Labelled] = []
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    by_class: dict[int, list[Labelled]] = {}
    for item in found:
        by_class.setdefault(item[1], []).append(item)
    for index, label in enumerate(labels):
        ours = by_class.get(index, [])
        if not ours:
            continue
        if len(ours) < 2:
            raise TrainingImpossible(
                f"the class {label!r} has one picture, and one to train and one to test are needed"
            )
        apart = min(len(ours) - 1, max(1, round(share * len(ours))))
        chosen = set(torch.randperm(len(ours), generator=generator)[:apart].tolist())
        for position, item in enumerate(ours):
            (test if position in chosen else train).append(item)
    return tuple(train), tuple(test)
