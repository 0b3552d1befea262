"""Convert tensors between arrays or byte strings and the protocol's JSON or binary format.

This module must not depend on the model or on HTTP.
"""

import base64
import re
import struct
from collections.abc import Sequence
from itertools import chain
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from resnet_service.errors import InvalidRequestError

Values = npt.NDArray[Any]

_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "UINT8": np.dtype("u1"),
    "INT64": np.dtype("<i8"),
    "FP32": np.dtype("<f4"),
}
_DATATYPES: Final = {"u": "UINT8", "i": "INT64", "f": "FP32", "O": "BYTES"}
_JSON_TYPES: Final[dict[str, set[type]]] = {"UINT8": {int}, "FP32": {int, float}}
_DATA_URL: Final = re.compile(r"\A\s*data:[^,]{0,200};base64,", re.IGNORECASE)
_LINE_BREAKS: Final = dict.fromkeys(map(ord, " \t\r\n"))
_LENGTH_PREFIX: Final = struct.Struct("<I")
"""Precedes each element of a BYTES tensor in binary."""


def datatype(values: Values) -> str:
    """Return the protocol's name for the type of an array; arrays of objects contain strings."""
    return _DATATYPES[values.dtype.kind]


def to_bytes(values: Values) -> bytes:
    """Encode an array as binary: row-major, little-endian, each string after its length."""
    name = datatype(values)
    if name != "BYTES":
        return values.astype(_DTYPES[name], copy=False).tobytes()
    encoded = [value.encode() for value in values.flat]
    return b"".join(chain.from_iterable((_LENGTH_PREFIX.pack(len(value)), value) for value in encoded))


def numbers_from_bytes(data: memoryview, datatype: str, shape: Sequence[int]) -> list[Values]:
    """Return the rows of a binary tensor of numbers as views of `data`.

    Raises InvalidRequestError if the size of `data` does not match the shape.
    """
    dtype = _DTYPES[datatype]
    size = prod(shape) * dtype.itemsize
    if len(data) != size:
        raise InvalidRequestError(f"{datatype} of shape {list(shape)} has {size} bytes, got {len(data)}")
    return list(np.frombuffer(data, dtype).reshape(shape))


def strings_from_bytes(data: memoryview, count: int) -> list[bytes]:
    """Return the `count` elements of a binary BYTES tensor.

    Raises InvalidRequestError if their lengths do not add up to the size of `data`.
    """
    strings = []
    position = 0
    for index in range(count):
        start = position + _LENGTH_PREFIX.size
        if start > len(data):
            raise InvalidRequestError(f"the data ends before element {index} of {count}")
        position = start + _LENGTH_PREFIX.unpack_from(data, position)[0]
        if position > len(data):
            raise InvalidRequestError(f"element {index} is longer than the remaining data")
        strings.append(bytes(data[start:position]))
    if position != len(data):
        raise InvalidRequestError(f"{len(data) - position} bytes remain after {count} elements")
    return strings


def numbers_from_json(data: object, datatype: str, shape: Sequence[int]) -> list[Values]:
    """Return the shape[0] rows of a tensor of numbers, from nested or flat lists.

    Allocates memory for numbers that are in `data`, not for those that `shape` claims. Raises
    InvalidRequestError if `data` does not match the datatype or the shape.
    """
    count, *row_shape = shape
    size = prod(row_shape)
    if _is_nested(data):
        rows = [_flatten(row, row_shape) for row in _flatten(data, [count])]
    else:
        values = _flatten(data, [count * size])
        rows = [values[start : start + size] for start in range(0, count * size, size)]
    return [_to_array(row, datatype).reshape(row_shape) for row in rows]


def strings_from_json(data: object, shape: Sequence[int]) -> list[bytes]:
    """Return the bytes of a tensor of base64 strings, from nested or flat lists.

    The strings may have line breaks, or be data URLs. Raises InvalidRequestError if `data` does not match the
    shape or is not base64.
    """
    strings = []
    for index, value in enumerate(_flatten(data, shape if _is_nested(data) else [prod(shape)])):
        try:
            strings.append(_decode_base64(value))
        except (TypeError, ValueError) as error:  # TypeError: not a string
            raise InvalidRequestError(f"element {index} is not a base64 string") from error
    return strings


def _decode_base64(value: str) -> bytes:
    """Return the bytes; raises TypeError or ValueError."""
    try:
        return base64.b64decode(value, validate=True)  # of most clients: without a copy of the text
    except ValueError:
        text = _DATA_URL.sub("", value).translate(_LINE_BREAKS)
        return base64.b64decode(text, validate=True)


def _is_nested(data: object) -> bool:
    return isinstance(data, list) and bool(data) and isinstance(data[0], list)


def _flatten(data: object, shape: Sequence[int]) -> list[Any]:
    """Return the elements of nested lists; raises InvalidRequestError if their lengths are not `shape`."""
    elements: list[Any] = [data]
    for size in shape:
        if set(map(type, elements)) != {list} or set(map(len, elements)) != {size}:
            raise InvalidRequestError(f"the data does not match the shape: expected lists of {size} elements")
        elements = list(chain.from_iterable(elements))
    return elements


def _to_array(values: list[Any], datatype: str) -> Values:
    if not set(map(type, values)) <= _JSON_TYPES[datatype]:
        raise InvalidRequestError(f"data contains values that are not {datatype}")
    try:
        with np.errstate(over="ignore"):  # `denormalize` rejects values that become infinite
            return np.array(values, _DTYPES[datatype])
    except OverflowError as error:
        raise InvalidRequestError(f"data contains a number that is out of range for {datatype}") from error
