"""Routes of the Open Inference Protocol. Errors are those of the service, in the protocol's body shape."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response

from resnet_service import __version__, errors
from resnet_service.batching import Lane
from resnet_service.inference.request_timing import RequestTiming
from resnet_service.inference.served_model import ImageReservation, ServedModel
from resnet_service.runtimes import TopKResult
from resnet_service.schemas import Priority
from resnet_service.server.admission import admit, update_admission
from resnet_service.server.concurrency import map_concurrently
from resnet_service.server.exception_handlers import AUTH_ERRORS, V2_PREFIX, openapi_responses
from resnet_service.server.parameters import NO_PARAMETERS, InferenceParameters, InferenceQuery
from resnet_service.server.routes import management
from resnet_service.server.state import AppState, StateDep
from resnet_service.server.uploads import Upload, cancel_on_disconnect, request_timing
from resnet_service.server.v2 import schemas
from resnet_service.server.v2.codec import ImageInput, encode_response, parse_request, required_top_k
from resnet_service.server.v2.dependencies import (
    AUTH,
    CHECK_VERSION,
    INVALID,
    MODEL_PATH,
    NOT_FOUND,
    NOT_READY,
    VERSION_PATH,
    Authorized,
    ModelDep,
)
from resnet_service.server.v2.schemas import (
    InferResponse,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
)

Value = TypeVar("Value")

router = APIRouter(prefix=V2_PREFIX, tags=["open inference protocol"])

_EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
)
"""The extensions of Triton that exist here, by Triton's names."""
_JSON_LENGTH_HEADER: Final = "Inference-Header-Content-Length"
_BINARY_TYPE: Final = "application/octet-stream"
_MAX_INLINE_JSON_BYTES: Final = 32_768
"""Longer JSON is parsed in a decoding thread, so that it does not block the event loop."""
_MAX_INLINE_CLASSES: Final = 10_000
"""Results with more classes, over all images, are encoded in a decoding thread."""

_IMAGE_ERRORS: Final = (
    errors.InvalidImageError,
    errors.UnsupportedMediaType,
    errors.PayloadTooLarge,
    errors.InferenceError,
)
"""Errors of a single image; the message gets the index of that image."""
_INFER_ERRORS: Final = openapi_responses(
    *(errors.InvalidRequestError, errors.RequestTimeout, *_IMAGE_ERRORS),
    *(errors.OverloadedError, errors.DeadlineExceededError, errors.ServiceUnavailable, *AUTH_ERRORS),
    protocol=True,
)


@router.get(
    "",
    operation_id="v2_server",
    summary="Server metadata",
    responses=AUTH | INVALID,
    dependencies=[NO_PARAMETERS],
)
async def server_metadata(_: Authorized) -> ServerMetadata:
    """Return the name and version of the server and the protocol extensions that it supports."""
    return ServerMetadata(name="resnet-service", version=__version__, extensions=list(_EXTENSIONS))


@router.get("/health/live", operation_id="v2_live", summary="Server liveness", responses=NOT_READY)
async def live(state: StateDep) -> ServerLive:
    """Return whether the server is alive, with the same condition and status as /healthz."""
    await management.healthz(state)
    return ServerLive(live=True)


@router.get("/health/ready", operation_id="v2_ready", summary="Server readiness", responses=NOT_READY)
async def ready(state: StateDep) -> ServerReady:
    """Return whether the server is ready for requests, with the same condition and status as /readyz."""
    await management.readyz(state)
    return ServerReady(ready=True)


@router.get(
    VERSION_PATH,
    operation_id="v2_version",
    summary="Metadata of a model version",
    responses=NOT_FOUND | INVALID,
    dependencies=[CHECK_VERSION, NO_PARAMETERS],
    response_model_exclude_none=True,
)
@router.get(
    MODEL_PATH,
    operation_id="v2_model",
    summary="Model metadata",
    responses=NOT_FOUND | INVALID,
    dependencies=[NO_PARAMETERS],
    response_model_exclude_none=True,
)
async def model_metadata(state: ModelDep) -> ModelMetadata:
    """Return the inputs and outputs of the model. A request has exactly one of the inputs."""
    served = state.backend.served_model
    model = served.model
    return ModelMetadata(
        name=model.name,
        versions=[schemas.MODEL_VERSION],
        platform=schemas.platform(served.placement),
        inputs=list(schemas.input_tensors(model).values()),
        outputs=list(schemas.output_tensors(model).values()),
    )


@router.get(
    f"{VERSION_PATH}/ready",
    operation_id="v2_version_ready",
    summary="Readiness of a model version",
    responses=NOT_FOUND | NOT_READY,
    dependencies=[CHECK_VERSION],
)
@router.get(
    f"{MODEL_PATH}/ready",
    operation_id="v2_model_ready",
    summary="Model readiness",
    responses=NOT_FOUND | NOT_READY,
)
async def model_ready(state: ModelDep) -> ModelReady:
    """Return whether the model is ready for requests, with the same condition and status as /readyz."""
    await management.readyz(state)
    return ModelReady(name=state.backend.served_model.model.name, ready=True)


_BINARY_BODY: Final = {_BINARY_TYPE: {"schema": {"type": "string", "format": "binary"}}}
_TINY_GIF: Final = "R0lGODlhAQABAIAAAP///wAAACwAAAAAAQABAAACAkQBADs="  # one pixel
_EXAMPLE: Final = {
    "inputs": [{"name": schemas.IMAGE_INPUT, "shape": [1], "datatype": "BYTES", "data": [_TINY_GIF]}],
    "outputs": [{"name": schemas.LABEL_OUTPUT}, {"name": schemas.PROBABILITY_OUTPUT}],
    "parameters": {"top_k": 2},
}
_INFER: Final[dict[str, Any]] = {
    "summary": "Classify images",
    "response_model": InferResponse,
    "responses": {200: {"content": _BINARY_BODY}} | NOT_FOUND | _INFER_ERRORS,
    "openapi_extra": {
        "parameters": [
            {
                "in": "header",
                "name": _JSON_LENGTH_HEADER,
                "description": "Size of the JSON in bytes, if binary data follows it.",
                "schema": {"type": "integer"},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": schemas.infer_request_schema(), "example": _EXAMPLE},
                **_BINARY_BODY,
            },
        },
    },
}


@router.post(f"{VERSION_PATH}/infer", operation_id="v2_version_infer", dependencies=[CHECK_VERSION], **_INFER)
@router.post(f"{MODEL_PATH}/infer", operation_id="v2_infer", **_INFER)
async def infer(request: Request, state: ModelDep, query: InferenceQuery) -> Response:
    """Classify the images of one input, in batches shared with other requests.

    If one image cannot be classified, the request fails. The parameter `top_k` (of the request, its input,
    its outputs, or the query) sets the number of classes in `class_id`, `label` and `probability`.
    """
    json_length = _json_length(request)
    async with admit(request, state, query, Lane.INTERACTIVE) as (served, reservation):
        with state.upload_memory.account() as account:
            body = await Upload(request, state.settings, account, reservation).body()
            work = _infer(request, state, query, served, reservation, body, json_length)
            content, content_json_length = await cancel_on_disconnect(request, work)
    if content_json_length is None:
        return Response(content, media_type="application/json")
    headers = {_JSON_LENGTH_HEADER: str(content_json_length)}
    return Response(content, headers=headers, media_type=_BINARY_TYPE)


def _json_length(request: Request) -> int | None:
    value = request.headers.get(_JSON_LENGTH_HEADER)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise errors.InvalidRequestError(
            f"{_JSON_LENGTH_HEADER} must be a number of bytes, got {value[:50]!r}"
        )
    return int(value)


async def _infer(
    request: Request,
    state: AppState,
    query: InferenceParameters,
    served: ServedModel,
    reservation: ImageReservation,
    body: bytearray,
    json_length: int | None,
) -> tuple[bytes, int | None]:
    """Return the body of the response and the length of its JSON; None if all of it is JSON."""
    settings, timing = state.settings, request_timing(request)
    deadline, limit = reservation.deadline, settings.max_images_per_request
    is_long = (len(body) if json_length is None else json_length) > _MAX_INLINE_JSON_BYTES
    parsed = await _call(is_long, served, deadline, parse_request, body, json_length, served.model, limit)
    if parsed.parameters.priority:
        priority: Priority = "interactive" if parsed.parameters.priority == 1 else "bulk"
        update_admission(request, state, reservation, query, InferenceParameters(priority=priority))
    if parsed.parameters.timeout:
        reservation.limit(parsed.parameters.timeout / 1e6)
        deadline = reservation.deadline
    top_k = served.top_k([query.top_k, *parsed.top_k], settings.top_k)
    classes = required_top_k(parsed, served.model, top_k)

    limits = served.image_limits()

    async def classify(numbered: tuple[int, ImageInput, RequestTiming]) -> TopKResult:
        index, image, image_timing = numbered
        try:
            if isinstance(image, bytes):
                return await served.classify(image, classes, reservation, image_timing, limits)
            return await served.classify_crop(image, classes, reservation, image_timing, limits)
        except _IMAGE_ERRORS as error:
            raise type(error)(f"{parsed.input_name}[{index}]: {error}") from error

    numbered = [(index, image, timing.image()) for index, image in enumerate(parsed.images)]
    results = await map_concurrently(classify, numbered, limits.total)
    is_large = len(results) * classes > _MAX_INLINE_CLASSES
    return await _call(is_large, served, deadline, encode_response, parsed, served.model, top_k, results)


async def _call(
    is_slow: bool,
    served: ServedModel,
    deadline: float | None,
    function: Callable[..., Value],
    *arguments: object,
) -> Value:
    """Call `function`; a slow one runs in a decoding thread."""
    return await served.decoder.run(deadline, function, *arguments) if is_slow else function(*arguments)
