"""Read the labels and the preprocessing that a user has for a network."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from resnet_service.errors import ModelLoadError, first_line
from resnet_service.files import describe_os_error
from resnet_service.hints import describe_unknown, summarize_errors
from resnet_service.images import Preprocessing

_PREPROCESSING: Final = TypeAdapter(Preprocessing)
_FIELDS: Final = tuple(field.name for field in fields(Preprocessing))
_MAX_DIGITS: Final = 10


def read_labels(path: Path) -> tuple[str, ...]:
    """Read the labels of a network's outputs, in the order of the outputs.

    A file that begins with [ or { is JSON: a list of labels, an object from index to label
    ({"0": "cat", "1": "dog"}) or from label to index, as ImageFolder's class_to_idx, or one with such an
    object under id2label. Any other file is text in UTF-8 with one label a line.

    Raises ModelLoadError if the file cannot be read, a label is empty, or an index is missing.
    """
    text = _read_text(path)
    if text.lstrip().startswith(("[", "{")):
        labels = list(_labels_of_json(_parse_json(text, str(path)), path))
    else:
        labels = [line.strip() for line in text.rstrip().splitlines()]
    if not labels:
        raise ModelLoadError(f"{path} has no labels")
    for index, label in enumerate(labels):
        if not (isinstance(label, str) and label.strip()):
            raise ModelLoadError(f"{path} has {label!r} instead of a label for the class {index}")
    return tuple(labels)


def read_preprocessing(source: str, default: Preprocessing) -> Preprocessing:
    """Return `default` with the fields of a JSON object, the text or the path of which is `source`.

    The fields are those of `Preprocessing`: {"resize": 256, "crop": 224, "mean": [0.5, 0.5, 0.5]}. Raises
    ModelLoadError if the file cannot be read, or a field is unknown or invalid.
    """
    is_text = source.lstrip().startswith("{")
    name = "the preprocessing" if is_text else source
    content = _parse_json(source if is_text else _read_text(Path(source)), name)
    if not isinstance(content, dict):
        raise ModelLoadError(f"{name} is not a JSON object with fields such as resize, crop, mean and std")
    for field in content:
        if field not in _FIELDS:
            raise ModelLoadError(f"{name}: {describe_unknown('field', field, _FIELDS)}")
    try:
        # As JSON, in which a list is a tuple.
        return _PREPROCESSING.validate_json(json.dumps({**asdict(default), **content}), strict=True)
    except ValidationError as error:
        raise ModelLoadError(f"{name}: {summarize_errors(error.errors())}") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"{path} is not a text file in UTF-8") from error
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {describe_os_error(error)}") from error


def _parse_json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{name} is not valid JSON: {first_line(error)}") from error


def _labels_of_json(content: Any, path: Path) -> Iterator[Any]:
    if isinstance(content, list):
        yield from content
        return
    labels = content.get("id2label", content)
    if not isinstance(labels, dict):
        raise ModelLoadError(f"{path} has no object from index to label under id2label")
    if labels and all(type(value) is int for value in labels.values()):
        by_index = {value: key for key, value in labels.items()}
    else:
        by_index = _index_labels(labels, path)
    for index in range(len(labels)):
        if index not in by_index:
            raise ModelLoadError(
                f"{path} has {len(labels)} labels but none for the index {index}: "
                f"the indices must be 0 to {len(labels) - 1}"
            )
        yield by_index[index]


def _index_labels(labels: Mapping[str, Any], path: Path) -> dict[int, Any]:
    for key in labels:
        if not (key.isascii() and key.isdigit() and len(key) < _MAX_DIGITS):
            raise ModelLoadError(f"{path} has the key {key!r}, which is not the index of a class")
    return {int(key): label for key, label in labels.items()}
