"""Find the class that a user names, by its index or by its label."""

from collections.abc import Sequence
from typing import Final

from resnet_service.errors import InvalidRequestError
from resnet_service.hints import most_similar

_MAX_SHOWN: Final = 50


def find_class(labels: Sequence[str], class_id: int | None, label: str | None) -> int | None:
    """Return the index of a class; None if neither `class_id` nor `label` is set.

    The case of a label does not count. Raises InvalidRequestError if both are set, if the class is unknown,
    with the most similar label, and if several classes have the label, with their indexes. The search for a
    similar label takes 20 us for each label.
    """
    if label is None:
        if class_id is not None and class_id >= len(labels):
            raise InvalidRequestError(f"class_id must be from 0 to {len(labels) - 1}, got {class_id}")
        return class_id
    if class_id is not None:
        raise InvalidRequestError("class_id and label exclude each other")
    indexes = [index for index, name in enumerate(labels) if name.casefold() == label.casefold()]
    if len(indexes) == 1:
        return indexes[0]
    if indexes:
        numbers = ", ".join(map(str, indexes))
        raise InvalidRequestError(
            f"several classes are called {labels[indexes[0]]!r}: use class_id {numbers}"
        )
    similar = most_similar(label, labels)
    advice = f"the model has {len(labels):,} labels" if similar is None else f"did you mean {similar!r}?"
    raise InvalidRequestError(f"unknown label {label[:_MAX_SHOWN]!r}; {advice}")
