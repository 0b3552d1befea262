"""Parse the JSON body of an inference request, with binary data after it, and encode the body of a response.

This module must not depend on HTTP or on the engine.
"""

from collections.abc import Sequence
from typing import Final

from pydantic_core import from_json

from resnet_service.errors import InvalidRequestError, PayloadTooLarge
from resnet_service.models import ModelDescription
from resnet_service.runtimes import TopKResult
from resnet_service.server.v2 import tensors
from resnet_service.server.v2.codec import ParsedRequest, check_request, output_values, parse_message
from resnet_service.server.v2.schemas import InferRequest, InferResponse, RequestInput, ResponseOutput
from resnet_service.server.v2.tensors import BinaryData, JSONData, TensorData

_JSON_LIMITS: Final = (
    (b",", tensors.MAX_VALUES, "values"),
    (b"[", 200_000, "lists"),  # one for each of 160,000 pixels
    (b"{", 200_000, "objects"),
    (b":", 50_000, "names"),
    (b"\\", 1_000_000, "escapes"),  # 20 MB of base64 with each slash escaped have 300,000
)
"""Characters and how often each may occur in JSON.

The JSON parser blocks the interpreter for 0.03 to 0.3 us for each of them.
"""


def parse_request(
    body: bytearray, json_length: int | None, model: ModelDescription, max_images: int
) -> ParsedRequest:
    """Parse a body of `json_length` bytes of JSON and binary data after them; None if all of it is JSON.

    Raises InvalidRequestError if the request does not match the protocol or the model, and PayloadTooLarge if
    it has more than `max_images` images or exceeds a limit on JSON.
    """
    if json_length is None:
        json_length = len(body)
    if json_length > len(body):
        raise InvalidRequestError(f"the JSON length is {json_length}, but the body has {len(body)} bytes")
    binary = memoryview(body)[json_length:]

    def read_data(tensor: RequestInput) -> TensorData:
        size = tensor.parameters.binary_data_size
        if (size or 0) != len(binary):
            raise InvalidRequestError(
                f"binary_data_size is {size or 0}, but {len(binary)} bytes follow the JSON"
            )
        if (size is None) is (tensor.data is None):
            raise InvalidRequestError("send either data or binary_data_size")
        return JSONData(tensor.data) if size is None else BinaryData(binary)

    return check_request(_parse_json(body[:json_length]), read_data, model, max_images)


def encode_response(
    request: ParsedRequest, model: ModelDescription, top_k: int, results: Sequence[TopKResult]
) -> tuple[bytes, int | None]:
    """Return the body of the response and the length of its JSON; None if all of it is JSON.

    `results` has one item for each image, with `required_top_k` classes.
    """
    outputs: list[ResponseOutput] = []
    binary: list[bytes] = []
    all_values = output_values(request, model, top_k, results)
    for output, values in zip(request.outputs, all_values, strict=True):
        is_binary = output.parameters.binary_data
        if request.parameters.binary_data_output if is_binary is None else is_binary:
            binary.append(tensors.to_bytes(values))
            parameters, data = {"binary_data_size": len(binary[-1])}, None
        else:
            parameters, data = None, values.ravel().tolist()
        outputs.append(
            ResponseOutput(
                name=output.name,
                datatype=tensors.datatype(values),
                shape=list(values.shape),
                parameters=parameters,
                data=data,
            )
        )
    response = InferResponse(
        model_name=model.name, model_version=model.version, id=request.id, outputs=outputs
    )
    encoded = response.model_dump_json(exclude_none=True).encode()
    return (b"".join([encoded, *binary]), len(encoded)) if binary else (encoded, None)


def _parse_json(data: bytearray) -> InferRequest:
    for character, limit, name in _JSON_LIMITS:
        if data.count(character) >= limit:
            raise PayloadTooLarge(f"the JSON exceeds {limit:,} {name}; send the data as binary")
    try:
        message = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequestError(f"invalid JSON: {error}") from error
    return parse_message(message)
