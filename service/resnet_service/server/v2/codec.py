"""The rules of inference requests in any format: validate them, and compute the values of the outputs.

`json_codec` and `server.rpc.codec` read and write the formats. This module must not depend on HTTP, on gRPC
or on the engine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from resnet_service.errors import InvalidRequestError, PayloadTooLarge
from resnet_service.hints import summarize_errors
from resnet_service.images import Crop
from resnet_service.models import ModelDescription
from resnet_service.runtimes import TopKResult
from resnet_service.server.v2 import schemas
from resnet_service.server.v2.schemas import InferRequest, RequestInput, RequestOutput, RequestParameters
from resnet_service.server.v2.tensors import TensorData, Values

ImageInput = bytes | Crop | Callable[[], Crop]
"""An encoded image, a crop, or a function that returns a crop."""


@dataclass(frozen=True)
class ParsedRequest:
    """A valid request: the images of its input, and the outputs to return, all of which the model has.

    `top_k` has the values of the parameter in the request, its input and its outputs.
    """

    id: str | None
    input_name: str
    images: Sequence[ImageInput]
    outputs: Sequence[RequestOutput]
    parameters: RequestParameters
    top_k: Sequence[int | None]


def parse_message(message: Any) -> InferRequest:
    """Validate the fields of a request, which are those of `InferRequest`. Raises InvalidRequestError."""
    try:
        return InferRequest.model_validate(message)
    except ValidationError as error:
        [first, *_] = error.errors(include_url=False, include_context=False, include_input=False)
        raise InvalidRequestError(summarize_errors([first])) from error


def check_request(
    request: InferRequest,
    read_data: Callable[[RequestInput], TensorData],
    model: ModelDescription,
    max_images: int,
) -> ParsedRequest:
    """Check that a request matches the model, and read the images of its only input with `read_data`.

    Raises InvalidRequestError if it does not, and PayloadTooLarge if it has more than `max_images` images.
    """
    outputs = _validate_outputs(request, model)
    tensor = _validate_input(request, model, max_images)
    try:
        images = _read_images(tensor, read_data(tensor), model)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{tensor.name}: {error}") from error
    top_k = [request.parameters.top_k, tensor.parameters.top_k]
    top_k += [output.parameters.top_k for output in outputs]
    return ParsedRequest(request.id, tensor.name, images, outputs, request.parameters, top_k)


def required_top_k(request: ParsedRequest, model: ModelDescription, top_k: int) -> int:
    """Return how many top classes of each image the outputs need; `top_k` is the number requested."""
    return max(_required_classes(output, model, top_k) for output in request.outputs)


def requires_embedding(request: ParsedRequest) -> bool:
    """Return whether an output is the embedding."""
    return any(output.name == schemas.EMBEDDING_OUTPUT for output in request.outputs)


def output_values(
    request: ParsedRequest, model: ModelDescription, top_k: int, results: Sequence[TopKResult]
) -> list[Values]:
    """Return the values of each output of a request; text is in arrays of objects.

    `results` has one item for each image, with `required_top_k` classes, and the embedding if an output
    requires it.
    """
    embeddings = [result.embedding for result in results if result.embedding is not None]
    top = TopKResult(
        np.stack([result.class_ids for result in results]),
        np.stack([result.probabilities for result in results]),
        np.stack([result.entropy for result in results]),
        results[0].device,
        np.stack(embeddings) if embeddings else None,
    )
    return [_output_values(output, model, top_k, top) for output in request.outputs]


def _validate_outputs(request: InferRequest, model: ModelDescription) -> Sequence[RequestOutput]:
    """Return the requested outputs, or all but the embedding if the request names none."""
    available = schemas.output_tensors(model)
    if not request.outputs:
        return [RequestOutput(name=name) for name in available if name != schemas.EMBEDDING_OUTPUT]
    names = [output.name for output in request.outputs]
    for output in request.outputs:
        if output.name not in available:
            raise InvalidRequestError(
                f"unknown output {output.name[:50]!r}; the model has {', '.join(available)}"
            )
        _validate_class_count(output)
    if len(set(names)) < len(names):
        raise InvalidRequestError("an output is requested twice")
    return request.outputs


def _validate_class_count(output: RequestOutput) -> None:
    """Raise InvalidRequestError if the number of classes is in the parameter for other outputs."""
    is_all = output.name == schemas.PROBABILITIES_OUTPUT
    if output.name == schemas.EMBEDDING_OUTPUT and output.parameters.top_k is not None:
        raise InvalidRequestError(f"top_k is not supported for {output.name}, which has no classes")
    if is_all and output.parameters.top_k is not None:
        raise InvalidRequestError(f"top_k is not supported for {output.name}; did you mean 'classification'?")
    if not is_all and output.parameters.classification is not None:
        raise InvalidRequestError(
            f"classification is only supported for {schemas.PROBABILITIES_OUTPUT}, not for {output.name}"
            + "; did you mean 'top_k'?" * (output.name != schemas.EMBEDDING_OUTPUT)
        )


def _validate_input(request: InferRequest, model: ModelDescription, max_images: int) -> RequestInput:
    """Return the only input, whose name, datatype and shape the model accepts."""
    available = schemas.input_tensors(model)
    if len(request.inputs) != 1:
        raise InvalidRequestError(
            f"send exactly one of the inputs {', '.join(available)}, got {len(request.inputs)}"
        )
    [tensor] = request.inputs
    expected = available.get(tensor.name)
    if expected is None:
        raise InvalidRequestError(f"unknown input {tensor.name[:50]!r}; the model has {', '.join(available)}")
    if tensor.datatype != expected.datatype:
        raise InvalidRequestError(
            f"{tensor.name} must have the datatype {expected.datatype}, got {tensor.datatype[:50]!r}"
        )
    count, image_shape = tensor.shape[0], tensor.shape[1:]
    is_column = tensor.name == schemas.IMAGE_INPUT and image_shape == [1]
    if image_shape != expected.shape[1:] and not is_column:
        raise InvalidRequestError(f"{tensor.name} must have the shape {expected.shape}, got {tensor.shape}")
    if count > max_images:
        raise PayloadTooLarge(f"the request has {count} images; the limit is {max_images}")
    return tensor


def _read_images(tensor: RequestInput, data: TensorData, model: ModelDescription) -> Sequence[ImageInput]:
    if tensor.name == schemas.IMAGE_INPUT:
        return data.strings(tensor.shape)
    rows = data.numbers(tensor.datatype, tensor.shape)
    if tensor.name == schemas.PIXELS_INPUT:
        return rows
    return [partial(model.preprocessing.denormalize, row) for row in rows]


def _required_classes(output: RequestOutput, model: ModelDescription, top_k: int) -> int:
    if output.name == schemas.EMBEDDING_OUTPUT:
        return 1
    return _probability_count(output, model) if output.name == schemas.PROBABILITIES_OUTPUT else top_k


def _probability_count(output: RequestOutput, model: ModelDescription) -> int:
    """Return how many classes the `probabilities` output has: all, or the number for classification."""
    return min(output.parameters.classification or len(model.labels), len(model.labels))


def _output_values(output: RequestOutput, model: ModelDescription, top_k: int, top: TopKResult) -> Values:
    if output.name == schemas.EMBEDDING_OUTPUT:
        assert top.embedding is not None
        return top.embedding
    ids, probabilities = top.class_ids[:, :top_k], top.probabilities[:, :top_k]
    if output.name == schemas.CLASS_ID_OUTPUT:
        return ids
    if output.name == schemas.PROBABILITY_OUTPUT:
        return probabilities
    if output.name == schemas.LABEL_OUTPUT:
        return _labels(ids, model)
    if output.parameters.classification is not None:
        count = _probability_count(output, model)
        return _classification_strings(top.class_ids[:, :count], top.probabilities[:, :count], model)
    by_class = np.empty_like(top.probabilities)
    np.put_along_axis(by_class, top.class_ids, top.probabilities, axis=1)
    return by_class


def _labels(ids: npt.NDArray[np.int64], model: ModelDescription) -> npt.NDArray[np.object_]:
    """Return the label of each class; an array of all labels takes 20 us for 1,000."""
    return np.array([model.labels[index] for index in ids.ravel().tolist()], object).reshape(ids.shape)


def _classification_strings(
    ids: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32], model: ModelDescription
) -> npt.NDArray[np.object_]:
    """Return "probability:index:label" for each class, which is Triton's format."""
    classes = zip(probabilities.flat, ids.flat, _labels(ids, model).flat, strict=True)
    strings = [f"{probability:f}:{class_id}:{label}" for probability, class_id, label in classes]
    return np.array(strings, object).reshape(ids.shape)
