"""Read YAML files of which every value is one of JSON.

YAML can do more: references that expand to gigabytes, tags that create objects, keys that occur twice, and
numbers in octal, with base 60 or not finite. Here, each of these is an error. This module does not know what
the files mean.
"""

import re
from pathlib import Path
from typing import Any, Final

import yaml

from resnet_service.errors import ModelLoadError, first_line
from resnet_service.files import describe_os_error, read_small_file

MAX_BYTES: Final = 100_000

_MAX_DEPTH: Final = 20
_MAX_EVENTS: Final = 2000
"""Starts and ends of values. 100,000 bytes can have 50,000, which take 9 s."""
_INTEGER: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_FLOAT: Final = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]{0,17})\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]{1,2})?")
_TEXT_TAG: Final = "tag:yaml.org,2002:str"


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file in UTF-8 with at most `MAX_BYTES`.

    Raises ModelLoadError, with the path and the line, if the file cannot be read, is not valid YAML or
    contains anything but mappings with different text keys, lists, text, numbers, true, false and null.

        fields = read_yaml(Path("models/resnet/1/model.yaml"))
    """
    text = _read_text(path)
    try:
        _check_events(text)
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        raise ModelLoadError(f"{path} is not valid YAML: {_describe(error)}") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} is not a mapping with lines such as KEY: VALUE")
    return content


def _read_text(path: Path) -> str:
    try:
        content = read_small_file(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {describe_os_error(error)}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"{path} is not a text file in UTF-8") from error


def _check_events(text: str) -> None:
    """Check size, depth, references and tags before objects are made, recursively. Raises YAMLError."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        if count == _MAX_EVENTS:
            raise _error("there are too many values", event)
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            raise _error("anchors and aliases are not supported", event)
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            raise _error(f"tags are not supported, and this is {event.tag!r}", event)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise _error(f"there are more than {_MAX_DEPTH} levels", event)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Loader(yaml.SafeLoader):
    """A SafeLoader whose mappings have different text keys, and whose numbers are decimal."""

    def construct_unique_mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        """Return a mapping. Raises YAMLError for a key that is not text or occurs twice."""
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag != _TEXT_TAG:
                raise _error("a key is not text; put it in quotes", key)
            if key.value in mapping:
                raise _error(f"the key {key.value[:50]!r} occurs twice", key)
            mapping[key.value] = self.construct_object(value, deep=True)
        return mapping

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        """Return an integer. Raises YAMLError for one in another notation, such as 010, which would be 8."""
        return int(_match(_INTEGER, node))

    def construct_decimal(self, node: yaml.ScalarNode) -> float:
        """Return a finite number. Raises YAMLError for .nan, .inf and 1:30.5, which would be 90.5."""
        return float(_match(_FLOAT, node))

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """Return the text of a value that YAML has another type for."""
        return str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_unique_mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_decimal)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_text)


def _match(pattern: re.Pattern[str], node: yaml.ScalarNode) -> str:
    if pattern.fullmatch(node.value) is None:
        raise _error(
            f"{node.value[:50]!r} is not a decimal number of at most 18 digits; put text in quotes", node
        )
    return str(node.value)


def _error(problem: str, source: Any) -> yaml.MarkedYAMLError:
    """Return an error at the start of an event or a node."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=source.start_mark)


def _describe(error: yaml.YAMLError | ValueError) -> str:
    """Return the message in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark) is not None:
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return first_line(error)
