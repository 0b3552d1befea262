"""Which class the name of an image tells: its folder's, a WordNet id, or its own."""

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import PurePath
from typing import Final

from resnet_service.models import catalog

_SYNSET: Final = re.compile(r"n\d{8}")
_NUMBERED: Final = re.compile(r"[\s_.()-]*\d*[\s_.()-]*$")
_BETWEEN_WORDS: Final = re.compile(r"[\W_]+")


def labels_from_path(name: str, labels: Sequence[str]) -> frozenset[int]:
    """Return the classes that the image's path tells, by index; none where it tells none of `labels`.

    The folder's name comes before the file's: photos/dog/1.jpg, photos/n02099601/x.JPEG, dog_1.jpg. Two
    classes may have one label, as ImageNet's "crane" has.
    """
    path = PurePath(name)
    for text in (path.parent.name, path.stem):
        if found := _synset(text, labels) or _label(text, tuple(labels)):
            return found
    return frozenset()


def _synset(text: str, labels: Sequence[str]) -> frozenset[int]:
    found = _SYNSET.match(text)
    if found is None or found[0] not in _synsets() or tuple(labels) != _imagenet():
        return frozenset()
    return frozenset((_synsets()[found[0]],))


def _label(text: str, labels: tuple[str, ...]) -> frozenset[int]:
    by_label = _by_label(labels)
    for plain in (_plain(text), _plain(_NUMBERED.sub("", text))):
        if plain and plain in by_label:
            return by_label[plain]
    return frozenset()


@cache
def _by_label(labels: tuple[str, ...]) -> dict[str, frozenset[int]]:
    found: dict[str, frozenset[int]] = {}
    for index, label in enumerate(labels):
        found[_plain(label)] = found.get(_plain(label), frozenset()) | {index}
    return found


@cache
def _synsets() -> dict[str, int]:
    """Return the class of each of ImageNet's WordNet ids, which are in the order of the classes."""
    text = resources.files("resnet_service.models").joinpath("imagenet_synsets.txt").read_text("ascii")
    return {synset: index for index, synset in enumerate(text.split())}


@cache
def _imagenet() -> tuple[str, ...]:
    return catalog.get_spec("resnet50").labels


def _plain(text: str) -> str:
    return _BETWEEN_WORDS.sub(" ", text.casefold()).strip()
