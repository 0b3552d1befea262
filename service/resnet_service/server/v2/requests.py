"""A request's body -> images, and what is to be answered about them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from pydantic import ValidationError
from pydantic_core import from_json

from resnet_service.errors import InvalidRequestError, PayloadTooLarge
from resnet_service.images import Crop
from resnet_service.models import Model
from resnet_service.server.v2 import metadata as interface
from resnet_service.server.v2 import tensors
from resnet_service.server.v2.schemas import InferRequest, RequestInput, RequestOutput, RequestParameters

Image = bytes | Crop | Callable[[], Crop]
"""An encoded image, a crop, or what makes a crop."""

_MOST_IN_JSON: Final = (
    (b",", 500_000, "values"),  # 224 x 224 pixels are 150,528
    (b"[", 200_000, "lists"),  # one for each of 160,000 pixels
    (b"{", 200_000, "objects"),
    (b":", 50_000, "names"),
    (b"\\", 1_000_000, "escapes"),  # 20 MB of base64 with each slash escaped have 300,000
)
"""A character, and how often it may be there.

Python does nothing else while it reads what they stand for: 0.03 to 0.3 us each.
"""


@dataclass(frozen=True)
class Inference:
    """A request: the images in its input, and the outputs it asks for, which the model has."""

    id: str | None
    input: str
    images: Sequence[Image]
    outputs: Sequence[RequestOutput]
    parameters: RequestParameters


def parse(body: bytearray, json_length: int | None, model: Model, max_images: int) -> Inference:
    """Read a body whose first `json_length` bytes are JSON, all of them for None, and the rest binary data.

    Raises InvalidRequestError for what the protocol or the model does not know, PayloadTooLarge for more than
    `max_images` and for too much in JSON.
    """
    if json_length is None:
        json_length = len(body)
    if json_length > len(body):
        raise InvalidRequestError(f"the JSON should have {json_length} bytes, but the body has {len(body)}")
    request = _read_json(body[:json_length])
    outputs = _outputs(request, model)
    tensor = _input(request, model, max_images)
    try:
        images = _images(tensor, memoryview(body)[json_length:], model)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{tensor.name}: {error}") from error
    return Inference(request.id, tensor.name, images, outputs, request.parameters)


def _read_json(data: bytearray) -> InferRequest:
    for mark, most, name in _MOST_IN_JSON:
        if data.count(mark) >= most:
            raise PayloadTooLarge(f"more than {most:,} {name} in JSON; data may be sent as binary")
    try:
        return InferRequest.model_validate(from_json(data, allow_inf_nan=False))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise InvalidRequestError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except ValueError as error:
        raise InvalidRequestError(f"the JSON cannot be read: {error}") from error


def _outputs(request: InferRequest, model: Model) -> Sequence[RequestOutput]:
    """Return the outputs that a request asks for: all where it names none."""
    known = interface.outputs(model)
    if not request.outputs:
        return [RequestOutput(name=name) for name in known]
    names = [output.name for output in request.outputs]
    for output in request.outputs:
        if output.name not in known:
            raise InvalidRequestError(
                f"no output is called {output.name[:50]!r}; there are {', '.join(known)}"
            )
        if output.parameters.classification is not None and output.name != interface.PROBABILITIES:
            raise InvalidRequestError(
                f"classification is for {interface.PROBABILITIES}, not for {output.name}"
            )
    if len(set(names)) < len(names):
        raise InvalidRequestError("an output is asked for twice")
    return request.outputs


def _input(request: InferRequest, model: Model, max_images: int) -> RequestInput:
    """Return the one input, which is said to be what the model takes."""
    known = interface.inputs(model)
    if len(request.inputs) != 1:
        raise InvalidRequestError(f"send one of the inputs {', '.join(known)}, got {len(request.inputs)}")
    [tensor] = request.inputs
    declared = known.get(tensor.name)
    if declared is None:
        raise InvalidRequestError(f"no input is called {tensor.name[:50]!r}; there are {', '.join(known)}")
    if tensor.datatype != declared.datatype:
        raise InvalidRequestError(f"{tensor.name} is {declared.datatype}, not {tensor.datatype[:50]!r}")
    count, rest = tensor.shape[0], tensor.shape[1:]
    if rest != declared.shape[1:] and not (tensor.name == interface.IMAGE and rest == [1]):
        raise InvalidRequestError(f"{tensor.name} has the shape {declared.shape}, not {tensor.shape}")
    if count > max_images:
        raise PayloadTooLarge(f"{count} images are more than the limit of {max_images}")
    return tensor


def _images(tensor: RequestInput, binary: memoryview, model: Model) -> Sequence[Image]:
    size = tensor.parameters.binary_data_size
    if (size or 0) != len(binary):
        raise InvalidRequestError(f"binary_data_size is {size or 0}, but {len(binary)} bytes follow the JSON")
    if (size is None) is (tensor.data is None):
        raise InvalidRequestError("send either data or binary_data_size")
    if tensor.name == interface.IMAGE:
        if size is None:
            return tensors.strings_from_json(tensor.data, tensor.shape)
        return tensors.strings_from_bytes(binary, tensor.shape[0])
    if size is None:
        rows = tensors.numbers_from_json(tensor.data, tensor.datatype, tensor.shape)
    else:
        rows = tensors.numbers_from_bytes(binary, tensor.datatype, tensor.shape)
    if tensor.name == interface.PIXELS:
        return rows
    return [partial(model.preprocessing.denormalize, row) for row in rows]
