"""Tensors on the wire <-> arrays and byte strings, in JSON or binary. Knows no model and no HTTP."""

import base64
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
_IN_JSON: Final[dict[str, set[type]]] = {"UINT8": {int}, "FP32": {int, float}}
_LENGTH: Final = struct.Struct("<I")
"""What goes before each element of BYTES in binary."""


def datatype(values: Values) -> str:
    """Return what the protocol calls the type of an array; strings are objects."""
    return _DATATYPES[values.dtype.kind]


def to_bytes(values: Values) -> bytes:
    """Return the elements, row-major and little-endian, strings with their lengths before them."""
    name = datatype(values)
    if name != "BYTES":
        return values.astype(_DTYPES[name], copy=False).tobytes()
    encoded = [value.encode() for value in values.flat]
    return b"".join(chain.from_iterable((_LENGTH.pack(len(value)), value) for value in encoded))


def numbers_from_bytes(data: memoryview, datatype: str, shape: Sequence[int]) -> list[Values]:
    """Return the rows of a tensor of numbers as views of `data`; raises InvalidRequestError for a wrong size."""
    dtype = _DTYPES[datatype]
    if len(data) != prod(shape) * dtype.itemsize:
        raise InvalidRequestError(
            f"{datatype} of shape {list(shape)} is {prod(shape) * dtype.itemsize} bytes, got {len(data)}"
        )
    return list(np.frombuffer(data, dtype).reshape(shape))


def strings_from_bytes(data: memoryview, count: int) -> list[bytes]:
    """Return the elements of BYTES; raises InvalidRequestError where their lengths do not add up."""
    strings = []
    position = 0
    for index in range(count):
        start = position + _LENGTH.size
        if start > len(data):
            raise InvalidRequestError(f"the data end before element {index} of {count}")
        position = start + _LENGTH.unpack_from(data, position)[0]
        if position > len(data):
            raise InvalidRequestError(f"element {index} is longer than the data that are left")
        strings.append(bytes(data[start:position]))
    if position != len(data):
        raise InvalidRequestError(f"{len(data) - position} bytes are left after {count} elements")
    return strings


def numbers_from_json(data: object, datatype: str, shape: Sequence[int]) -> list[Values]:
    """Return the rows of a tensor of numbers, shape[0] of them, from nested or flat lists.

    Nothing is made in a size that is only claimed. Raises InvalidRequestError for what is not such a tensor.
    """
    count, *row_shape = shape
    size = prod(row_shape)
    if _is_nested(data):
        rows = [_flat(row, row_shape) for row in _flat(data, [count])]
    else:
        values = _flat(data, [count * size])
        rows = [values[start : start + size] for start in range(0, count * size, size)]
    return [_numbers(row, datatype).reshape(row_shape) for row in rows]


def strings_from_json(data: object, shape: Sequence[int]) -> list[bytes]:
    """Return the bytes that a tensor has as base64; raises InvalidRequestError for anything else."""
    strings = []
    for index, value in enumerate(_flat(data, shape if _is_nested(data) else [prod(shape)])):
        try:
            strings.append(base64.b64decode(value, validate=True))
        except (TypeError, ValueError) as error:  # TypeError: no string
            raise InvalidRequestError(f"element {index} is not a string in base64") from error
    return strings


def _is_nested(data: object) -> bool:
    return isinstance(data, list) and bool(data) and isinstance(data[0], list)


def _flat(data: object, shape: Sequence[int]) -> list[Any]:
    """Return the elements of lists that are nested as `shape` says."""
    elements: list[Any] = [data]
    for size in shape:
        if set(map(type, elements)) != {list} or set(map(len, elements)) != {size}:
            raise InvalidRequestError(f"the data are not lists of {size} elements where the shape says so")
        elements = list(chain.from_iterable(elements))
    return elements


def _numbers(values: list[Any], datatype: str) -> Values:
    if not set(map(type, values)) <= _IN_JSON[datatype]:
        raise InvalidRequestError(f"the data hold what is not {datatype}")
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is rejected as such
            return np.array(values, _DTYPES[datatype])
    except OverflowError as error:
        raise InvalidRequestError(f"the data hold a number that is too large for {datatype}") from error
