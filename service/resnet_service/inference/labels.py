"""Derive the class of an image from its path: a folder name, a WordNet id, or the file name."""

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import PurePath
from typing import Final

from resnet_service.models import catalog

_WORDNET_ID: Final = re.compile(r"n\d{8}")
_TRAILING_NUMBER: Final = re.compile(r"[\s_.()-]*\d*[\s_.()-]*$")
_SEPARATORS: Final = re.compile(r"[\W_]+")


def labels_from_path(name: str, labels: Sequence[str]) -> frozenset[int]:
    """Return the indices of the `labels` that the path of an image names; empty if it names none.

    The folder name takes precedence over the file name: photos/dog/1.jpg, photos/n02099601/x.JPEG, dog_1.jpg.
    The result may have several indices, because two classes may have the same label, as ImageNet's "crane".
    """
    path = PurePath(name)
    for text in (path.parent.name, path.stem):
        if classes := _classes_of_wordnet_id(text, labels) or _classes_of_label(text, tuple(labels)):
            return classes
    return frozenset()


def _classes_of_wordnet_id(text: str, labels: Sequence[str]) -> frozenset[int]:
    match = _WORDNET_ID.match(text)
    if match is None or match[0] not in _imagenet_ids() or tuple(labels) != _imagenet_labels():
        return frozenset()
    return frozenset((_imagenet_ids()[match[0]],))


def _classes_of_label(text: str, labels: tuple[str, ...]) -> frozenset[int]:
    by_label = _classes_by_label(labels)
    for label in (_normalize(text), _normalize(_TRAILING_NUMBER.sub("", text))):
        if label and label in by_label:
            return by_label[label]
    return frozenset()


@cache
def _classes_by_label(labels: tuple[str, ...]) -> dict[str, frozenset[int]]:
    classes: dict[str, frozenset[int]] = {}
    for index, label in enumerate(labels):
        classes[_normalize(label)] = classes.get(_normalize(label), frozenset()) | {index}
    return classes


@cache
def _imagenet_ids() -> dict[str, int]:
    """Return the class index of each of ImageNet's WordNet ids; the file lists them in class order."""
    text = resources.files("resnet_service.models").joinpath("imagenet_synsets.txt").read_text("ascii")
    return {wordnet_id: index for index, wordnet_id in enumerate(text.split())}


@cache
def _imagenet_labels() -> tuple[str, ...]:
    return catalog.get_spec("resnet50").labels


def _normalize(text: str) -> str:
    return _SEPARATORS.sub(" ", text.casefold()).strip()
