"""Parse the protobuf messages of inference requests, and encode those of responses.

The rules are those of `server.v2.codec`. This module must not depend on gRPC or on the engine.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError

from resnet_service.errors import InvalidRequestError
from resnet_service.models import ModelDescription
from resnet_service.runtimes import TopKResult
from resnet_service.server.rpc.message_limits import measure_message
from resnet_service.server.rpc.protocol import open_inference_pb2 as messages
from resnet_service.server.v2 import tensors
from resnet_service.server.v2.codec import ParsedRequest, check_request, output_values, parse_message
from resnet_service.server.v2.schemas import RequestInput
from resnet_service.server.v2.tensors import BinaryData, TensorData, TypedData, Values

_CONTENTS: Final = {
    "UINT8": "uint_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "BYTES": "bytes_contents",
}
"""The field of InferTensorContents for each datatype."""


def measure_request(data: bytes) -> int:
    """Return the bytes of a request that have to be parsed. Raises what `measure_message` raises."""
    return measure_message(data, messages.ModelInferRequest.DESCRIPTOR)


def requested_model(data: bytes) -> tuple[str, str | None]:
    """Return the name and the version, if it has one, of the model that a request is for.

    `measure_request` has accepted the bytes. Raises InvalidRequestError if the message is damaged.
    """
    try:
        # Has the same first two fields; the others, which may be large, are not parsed.
        request = messages.ModelReadyRequest.FromString(data)
    except DecodeError as error:
        raise InvalidRequestError("the message is not a ModelInferRequest") from error
    return request.name, request.version or None


def parse_request(data: bytes, model: ModelDescription, max_images: int) -> ParsedRequest:
    """Parse the bytes of a request, which `measure_request` has accepted.

    Raises InvalidRequestError if the request does not match the protocol or the model, and PayloadTooLarge if
    it has more than `max_images` images or too many values that are not binary.
    """
    try:
        request = messages.ModelInferRequest.FromString(data)
    except DecodeError as error:
        raise InvalidRequestError("the message is not a ModelInferRequest") from error
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequestError(
            f"raw_input_contents has {len(raw)} elements for {len(request.inputs)} inputs"
        )

    def read_data(tensor: RequestInput) -> TensorData:
        [source] = request.inputs  # `check_request` has checked that there is one
        fields = [field.name for field, _ in source.contents.ListFields()]
        if raw:
            if fields:
                raise InvalidRequestError("send either contents or raw_input_contents")
            # Rows of numbers are views of the data, and PyTorch takes none of immutable bytes.
            return BinaryData(memoryview(raw[0] if tensor.datatype == "BYTES" else bytearray(raw[0])))
        expected = _CONTENTS[tensor.datatype]
        if fields != [expected]:
            raise InvalidRequestError(
                f"expected {expected} or raw_input_contents, got {' and '.join(fields) or 'no data'}"
            )
        return TypedData(getattr(source.contents, expected))

    return check_request(parse_message(_to_fields(request)), read_data, model, max_images)


def encode_response(
    request: ParsedRequest, model: ModelDescription, top_k: int, results: Sequence[TopKResult]
) -> bytes:
    """Return the bytes of a response, whose values are as binary as those of the request.

    `results` has one item for each image, with `required_top_k` classes.
    """
    response = messages.ModelInferResponse(
        model_name=model.name, model_version=model.version, id=request.id or ""
    )
    all_values = output_values(request, model, top_k, results)
    for output, values in zip(request.outputs, all_values, strict=True):
        tensor = response.outputs.add(
            name=output.name, datatype=tensors.datatype(values), shape=list(values.shape)
        )
        if request.parameters.binary_data_output:
            response.raw_output_contents.append(tensors.to_bytes(values))
        else:
            getattr(tensor.contents, _CONTENTS[tensor.datatype]).extend(_elements(values))
    data: bytes = response.SerializeToString()
    return data


def _elements(values: Values) -> list[Any]:
    flat: list[Any] = values.ravel().tolist()
    return [value.encode() for value in flat] if tensors.datatype(values) == "BYTES" else flat


def _to_fields(request: messages.ModelInferRequest) -> dict[str, Any]:
    """Return what `InferRequest` has in JSON, except for the data."""
    return {
        "id": request.id or None,
        "parameters": {"binary_data_output": bool(request.raw_input_contents)}
        | _parameters(request.parameters),
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": _parameters(tensor.parameters),
            }
            for tensor in request.inputs
        ],
        "outputs": [
            {"name": output.name, "parameters": _parameters(output.parameters)} for output in request.outputs
        ],
    }


def _parameters(parameters: Mapping[str, messages.InferParameter]) -> dict[str, Any]:
    """Return the values by name; None if a parameter has none."""
    values = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        values[name] = None if choice is None else getattr(parameter, choice)
    return values
