"""The true class of an image: the folder that it lies in, if that is named after a class or a WordNet id.

The name of a file is not a label, because it may say anything.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import PurePath
from typing import Final, NamedTuple

from resnet_service.models import catalog

_WORDNET_ID: Final = re.compile(r"n\d{8}")
_SEPARATORS: Final = re.compile(r"[\W_]+")


def class_folder(path: str, labels: Sequence[str]) -> str | None:
    """Return the name of the folder of an image if it names one of the `labels`, else None."""
    name = PurePath(path).parent.name
    return name if classes_of_folder(name, labels) else None


def classes_of_folder(name: str, labels: Sequence[str]) -> frozenset[int]:
    """Return the indices of the `labels` that a folder is named after: dog, Tabby Cat, n02099601.

    A label that is equal in case and separators comes first. There may be several, because labels may be
    equal, or differ only in case and separators.
    """
    by_label = _classes_by_label(tuple(labels))
    return (
        _classes_of_wordnet_id(name, labels)
        or by_label.exact.get(name)
        or by_label.normalized.get(_normalize(name), frozenset())
    )


def _classes_of_wordnet_id(text: str, labels: Sequence[str]) -> frozenset[int]:
    match = _WORDNET_ID.match(text)
    if match is None or match[0] not in _imagenet_ids() or tuple(labels) != _imagenet_labels():
        return frozenset()
    return frozenset((_imagenet_ids()[match[0]],))


class _ClassesByLabel(NamedTuple):
    exact: Mapping[str, frozenset[int]]
    normalized: Mapping[str, frozenset[int]]


@cache
def _classes_by_label(labels: tuple[str, ...]) -> _ClassesByLabel:
    return _ClassesByLabel(_group(labels), _group(map(_normalize, labels)))


def _group(names: Iterable[str]) -> Mapping[str, frozenset[int]]:
    """Return the positions of each name."""
    positions: dict[str, frozenset[int]] = {}
    for index, name in enumerate(names):
        positions[name] = positions.get(name, frozenset()) | {index}
    return positions


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
