"""Messages of the Open Inference Protocol over gRPC, with the classes of NVIDIA's client."""

import base64
from typing import Any

from tritonclient.grpc import service_pb2

from tests.support import v2

ONLY_IN_JSON = {
    **dict.fromkeys(("null inputs", "ten thousand inputs", "parameters as list"), "fields have types"),
    **dict.fromkeys(("id as number", "data as string", "data as object"), "fields have types"),
    **dict.fromkeys(("shape of strings", "shape of fractions", "shape of booleans"), "shapes are integers"),
    **dict.fromkeys(("ragged rows", "rows and numbers", "rows of another shape"), "the contents are flat"),
    **dict.fromkeys(("nulls", "numbers of 400 digits"), "the contents cannot have such values"),
    **dict.fromkeys(("not base64", "incomplete base64", "base64 beyond ASCII"), "the contents are bytes"),
    **dict.fromkeys(("data URL without base64", "data URL in base64"), "the contents are bytes"),
    **dict.fromkeys(
        ("data and binary size", "binary size as string"), "the size of raw contents is in the message"
    ),
}
"""Kinds of invalid messages that protobuf cannot have, or that are valid there, and why.

gRPC has no length of the JSON, no query parameters, no forms and no media types either, nor other paths and
methods of HTTP: gRPC itself answers an unknown method.
"""
INVALID_MESSAGES = {
    name: message for name, message in v2.INVALID_MESSAGES.items() if name not in ONLY_IN_JSON
}
INVALID_RAW_CONTENTS = {
    name: (message, binary)
    for name, (message, binary, json_length) in v2.INVALID_BINARY_DATA.items()
    if json_length is None
}
"""Raw contents that contradict the message."""
NOT_MESSAGES = {
    "text": b"image",
    "endless integer": b"\xff" * 20,
    "beyond the end": b"\x2a\xff\x01",
    "no length": b"\x2a",
    "not UTF-8": b"\x0a\x02\xff\xff",
    "group": b"\x0b\x0c",
    "incomplete number": b"\x09\0",
}
"""Bytes that are not a message of the protocol."""


def to_protobuf(message: dict[str, Any], binary: bytes | None = None) -> service_pb2.ModelInferRequest:
    """Return the message in JSON as protobuf; `binary` becomes the raw contents of its only input.

    Raises an error of protobuf if its messages cannot have a value.
    """
    request = service_pb2.ModelInferRequest(model_name="cifar10", id=message.get("id", ""))
    _set_parameters(request.parameters, message.get("parameters", {}))
    for fields in message.get("inputs", ()):
        parameters = dict(fields.get("parameters", {}))
        tensor = request.inputs.add(name=fields["name"], datatype=fields["datatype"], shape=fields["shape"])
        _set_parameters(tensor.parameters, parameters)
        if "data" in fields:
            _set_contents(tensor.contents, fields["datatype"], fields["data"])
    for fields in message.get("outputs", ()):
        output = request.outputs.add(name=fields["name"])
        _set_parameters(output.parameters, fields.get("parameters", {}))
    if binary is not None:
        request.raw_input_contents.append(binary)
    return request


def _set_parameters(parameters: Any, values: dict[str, Any]) -> None:
    names = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    for name, value in values.items():
        setattr(parameters[name], names[type(value)], value)


def _set_contents(contents: Any, datatype: str, data: Any) -> None:
    """Put JSON data into the field of its datatype, or of its own type if that cannot have it."""
    values = list(_flatten(data))
    if datatype == "BYTES" and all(isinstance(value, str) for value in values):
        contents.bytes_contents.extend(base64.b64decode(value, validate=True) for value in values)
    elif all(isinstance(value, bool) for value in values):
        contents.bool_contents.extend(values)
    elif all(isinstance(value, str) for value in values):
        contents.bytes_contents.extend(value.encode() for value in values)
    elif datatype == "FP32" or any(isinstance(value, float) for value in values):
        contents.fp32_contents.extend(values)
    elif min(values) < 0:
        contents.int_contents.extend(values)
    else:
        contents.uint_contents.extend(values)


def _flatten(data: Any) -> Any:
    if not isinstance(data, list):
        yield data
        return
    for value in data:
        yield from _flatten(value)
