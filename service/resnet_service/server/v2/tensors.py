"""Convert tensors between arrays or byte strings and the protocol's formats: JSON, binary, and typed values.

This module must not depend on the model, on HTTP or on gRPC.
"""

import base64
import re
import struct
from collections.abc import Sequence
from itertools import chain
from math import prod
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from resnet_service.errors import InvalidRequestError, PayloadTooLarge

Values = npt.NDArray[Any]

MAX_VALUES: Final = 500_000
"""Numbers that are not binary; 224 x 224 pixels have 150,528."""

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


class TensorData(Protocol):
    """The data of an input tensor, in one of the formats."""

    def numbers(self, datatype: str, shape: Sequence[int]) -> list[Values]:
        """Return the shape[0] rows of a tensor of numbers.

        Allocates memory for numbers that the data has, not for those that `shape` claims. Raises
        InvalidRequestError if the data does not match the datatype or the shape.
        """
        ...

    def strings(self, shape: Sequence[int]) -> list[bytes]:
        """Return the elements of a BYTES tensor. Raises InvalidRequestError if the shape has others."""
        ...


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


class BinaryData:
    """Binary `TensorData`: row-major, little-endian, each element of BYTES after its length."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def numbers(self, datatype: str, shape: Sequence[int]) -> list[Values]:
        """See `TensorData`; the rows are views of the data."""
        dtype = _DTYPES[datatype]
        size = prod(shape) * dtype.itemsize
        if len(self._data) != size:
            raise InvalidRequestError(
                f"{datatype} of shape {list(shape)} has {size} bytes, got {len(self._data)}"
            )
        return list(np.frombuffer(self._data, dtype).reshape(shape))

    def strings(self, shape: Sequence[int]) -> list[bytes]:
        """See `TensorData`."""
        data, count = self._data, prod(shape)
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


class JSONData:
    """`TensorData` in JSON: nested or flat lists of numbers or of base64 strings."""

    def __init__(self, data: object) -> None:
        self._data = data
        self._is_nested = isinstance(data, list) and bool(data) and isinstance(data[0], list)

    def numbers(self, datatype: str, shape: Sequence[int]) -> list[Values]:
        """See `TensorData`."""
        count, *row_shape = shape
        size = prod(row_shape)
        if self._is_nested:
            rows = [_flatten(row, row_shape) for row in _flatten(self._data, [count])]
        else:
            values = _flatten(self._data, [count * size])
            rows = [values[start : start + size] for start in range(0, count * size, size)]
        return [_to_array(row, datatype).reshape(row_shape) for row in rows]

    def strings(self, shape: Sequence[int]) -> list[bytes]:
        """See `TensorData`; the base64 strings may have line breaks, or be data URLs."""
        strings = []
        for index, value in enumerate(_flatten(self._data, shape if self._is_nested else [prod(shape)])):
            try:
                strings.append(_decode_base64(value))
            except (TypeError, ValueError) as error:  # TypeError: not a string
                raise InvalidRequestError(f"element {index} is not a base64 string") from error
        return strings


class TypedData:
    """`TensorData` as a sequence of numbers or of byte strings, which has no structure."""

    def __init__(self, values: Sequence[Any]) -> None:
        self._values = values

    def numbers(self, datatype: str, shape: Sequence[int]) -> list[Values]:
        """See `TensorData`. Raises PayloadTooLarge beyond MAX_VALUES numbers."""
        self._check_count(prod(shape))
        if len(self._values) > MAX_VALUES:
            raise PayloadTooLarge(f"the data exceeds {MAX_VALUES:,} values; send the data as binary")
        return list(_to_array(list(self._values), datatype).reshape(shape))

    def strings(self, shape: Sequence[int]) -> list[bytes]:
        """See `TensorData`."""
        self._check_count(prod(shape))
        return list(self._values)

    def _check_count(self, count: int) -> None:
        if len(self._values) != count:
            raise InvalidRequestError(
                f"the data does not match the shape: expected {count} elements, got {len(self._values)}"
            )


def _decode_base64(value: str) -> bytes:
    """Return the bytes; raises TypeError or ValueError."""
    try:
        return base64.b64decode(value, validate=True)  # of most clients: without a copy of the text
    except ValueError:
        text = _DATA_URL.sub("", value).translate(_LINE_BREAKS)
        return base64.b64decode(text, validate=True)


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
