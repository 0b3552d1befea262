"""What the protocol's operations do, over REST and over gRPC: metadata, names of models, and inference.

This module must not depend on the transport, HTTP or gRPC.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from resnet_service import __version__, errors
from resnet_service.inference.request_timing import RequestTiming
from resnet_service.inference.served_model import ImageReservation, ServedModel
from resnet_service.models import ModelDescription
from resnet_service.runtimes import TopKResult
from resnet_service.schemas import Priority
from resnet_service.server.concurrency import map_concurrently
from resnet_service.server.parameters import InferenceParameters
from resnet_service.server.prediction_logging import LogPrediction
from resnet_service.server.v2 import schemas
from resnet_service.server.v2.codec import ImageInput, ParsedRequest, required_top_k, requires_embedding
from resnet_service.server.v2.schemas import ModelMetadata, ServerMetadata
from resnet_service.settings import Settings

Value = TypeVar("Value")

_MAX_INLINE_BYTES: Final = 32_768
"""A longer message is parsed in a decoding thread, so that it does not block the event loop."""
_MAX_INLINE_VALUES: Final = 10_000
"""Results with more values, classes or those of embeddings, are encoded in a decoding thread."""
_EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
)
"""The extensions of Triton that exist here, by Triton's names."""
IMAGE_ERRORS: Final = (
    errors.InvalidImageError,
    errors.UnsupportedMediaType,
    errors.PayloadTooLarge,
    errors.InferenceError,
)
"""Errors of a single image; the message gets the index of that image."""


def server_metadata() -> ServerMetadata:
    """Return the name and version of the server and the protocol extensions that it supports."""
    return ServerMetadata(name="resnet-service", version=__version__, extensions=list(_EXTENSIONS))


def model_metadata(served: ServedModel, versions: list[str]) -> ModelMetadata:
    """Return the inputs and outputs of a model that has these versions. A request has one of the inputs."""
    model, placement = served.model, served.placement
    return ModelMetadata(
        name=model.name,
        versions=versions,
        platform=schemas.platform(placement),
        inputs=list(schemas.input_tensors(model).values()),
        outputs=list(schemas.output_tensors(model).values()),
    )


async def infer(
    settings: Settings,
    served: ServedModel,
    reservation: ImageReservation,
    timing: RequestTiming,
    parse: Callable[[ModelDescription, int], ParsedRequest],
    encode: Callable[[ParsedRequest, ModelDescription, int, Sequence[TopKResult]], Value],
    update: Callable[[InferenceParameters], None],
    *,
    message_bytes: int,
    top_k: int | None = None,
    log: LogPrediction | None = None,
) -> Value:
    """Classify the images of a request, and return its encoded response.

    `update` gets the parameters of the message, as `update_admission` does. `parse` gets the model and the
    maximum number of images, `encode` the request, the model, the number of classes and the results.
    `message_bytes` is the size of what `parse` has to parse, without binary data, and `top_k` a number of
    classes that the client sent beside the message. `log` gets the images that are files, not tensors, if the
    request succeeds. Raises InvalidRequestError, and what `parse` and
    `ServedModel.classify` raise.
    """
    limit = settings.max_images_per_request
    is_long = message_bytes > _MAX_INLINE_BYTES
    parsed = await _call(is_long, served, reservation, parse, served.model, limit)
    update(_parameters(parsed))
    if parsed.parameters.timeout:
        reservation.limit(parsed.parameters.timeout / 1e6)
    top_k = served.top_k([top_k, *parsed.top_k], settings.top_k)
    classes = required_top_k(parsed, served.model, top_k)

    with_embedding = requires_embedding(parsed)
    limits = served.image_limits()

    async def classify(numbered: tuple[int, ImageInput, RequestTiming]) -> TopKResult:
        index, image, image_timing = numbered
        try:
            arguments = classes, reservation, image_timing, limits
            if isinstance(image, bytes):
                return await served.classify(image, *arguments, with_embedding=with_embedding)
            return await served.classify_crop(image, *arguments, with_embedding=with_embedding)
        except IMAGE_ERRORS as error:
            raise type(error)(f"{parsed.input_name}[{index}]: {error}") from error

    numbered = [(index, image, timing.image()) for index, image in enumerate(parsed.images)]
    results = await map_concurrently(classify, numbered, limits.total)
    if log is not None:
        for image, result in zip(parsed.images, results, strict=True):
            if isinstance(image, bytes):
                log(image, result)
    values = classes + (served.model.embedding_size or 0) * with_embedding
    is_large = len(results) * values > _MAX_INLINE_VALUES
    return await _call(is_large, served, reservation, encode, parsed, served.model, top_k, results)


def _parameters(request: ParsedRequest) -> InferenceParameters:
    priority: Priority | None = None
    if request.parameters.priority:
        priority = "interactive" if request.parameters.priority == 1 else "bulk"
    return InferenceParameters(priority=priority)


async def _call(
    is_slow: bool,
    served: ServedModel,
    reservation: ImageReservation,
    function: Callable[..., Value],
    *arguments: object,
) -> Value:
    """Call `function`; a slow one runs in a decoding thread."""
    if not is_slow:
        return function(*arguments)
    return await served.decoder.run(reservation.deadline, function, *arguments, lane=reservation.lane)
