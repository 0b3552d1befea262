"""Routes of the Open Inference Protocol. Errors are those of the service, in the protocol's body shape."""

from functools import partial
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from resnet_service import errors
from resnet_service.batching import Lane
from resnet_service.server.admission import admit, update_admission
from resnet_service.server.exception_handlers import AUTH_ERRORS, V2_PREFIX, openapi_responses
from resnet_service.server.parameters import NO_PARAMETERS, InferenceQuery, inference_query
from resnet_service.server.prediction_logging import log_function
from resnet_service.server.routes import management
from resnet_service.server.state import StateDep
from resnet_service.server.uploads import Upload, cancel_on_disconnect, request_timing
from resnet_service.server.v2 import schemas, service
from resnet_service.server.v2.dependencies import (
    AUTH,
    INVALID,
    MODEL_PATH,
    NOT_FOUND,
    NOT_READY,
    VERSION,
    VERSION_PATH,
    Authorized,
    ModelDep,
)
from resnet_service.server.v2.json_codec import encode_response, parse_request
from resnet_service.server.v2.schemas import (
    InferResponse,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
)

router = APIRouter(prefix=V2_PREFIX, tags=["open inference protocol"])

_JSON_LENGTH_HEADER: Final = "Inference-Header-Content-Length"
_BINARY_TYPE: Final = "application/octet-stream"

_INFER_ERRORS: Final = openapi_responses(
    *(errors.InvalidRequestError, errors.RequestTimeout, *service.IMAGE_ERRORS),
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
    return service.server_metadata()


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
    dependencies=[VERSION, NO_PARAMETERS],
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
async def model_metadata(state: StateDep, served: ModelDep) -> ModelMetadata:
    """Return the inputs and outputs of the model. A request has exactly one of the inputs."""
    return service.model_metadata(served, state.backend.models.versions(served.model.name))


@router.get(
    f"{VERSION_PATH}/ready",
    operation_id="v2_version_ready",
    summary="Readiness of a model version",
    responses=NOT_FOUND | NOT_READY,
    dependencies=[VERSION],
)
@router.get(
    f"{MODEL_PATH}/ready",
    operation_id="v2_model_ready",
    summary="Model readiness",
    responses=NOT_FOUND | NOT_READY,
)
async def model_ready(state: StateDep, served: ModelDep) -> ModelReady:
    """Return whether the model is ready for requests, with the same condition and status as /readyz."""
    await management.readyz(state)
    return ModelReady(name=served.model.name, ready=True)


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
            },
            *inference_query.parameters,
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


@router.post(f"{VERSION_PATH}/infer", operation_id="v2_version_infer", dependencies=[VERSION], **_INFER)
@router.post(f"{MODEL_PATH}/infer", operation_id="v2_infer", **_INFER)
async def infer(request: Request, name: str, state: Authorized, query: InferenceQuery) -> Response:
    """Classify the images of one input, in batches shared with other requests.

    If one image cannot be classified, the request fails. The parameter `top_k` (of the request, its input,
    its outputs, or the query) sets the number of classes in `class_id`, `label` and `probability`.
    """
    json_length = _json_length(request)
    version = request.path_params.get("version")
    admission = admit(request.scope, state, query, Lane.INTERACTIVE, name, version)
    async with admission as (served, reservation):
        with state.upload_memory.account(reservation.lane) as account:
            body = await Upload(request, state.settings, account, reservation).body()
            work = service.infer(
                state.settings,
                served,
                reservation,
                request_timing(request),
                partial(parse_request, body, json_length),
                encode_response,
                partial(update_admission, request.scope, state, reservation, query),
                message_bytes=len(body) if json_length is None else json_length,
                top_k=query.top_k,
                log=log_function(state.prediction_log, request.scope, served.model),
            )
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
