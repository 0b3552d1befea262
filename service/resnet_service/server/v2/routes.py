"""The protocol's routes. Their errors are the service's own, with the protocol's body."""

from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import HTTPException
from fastapi.responses import Response

from resnet_service import __version__, errors
from resnet_service.inference.engine import Engine
from resnet_service.runtimes import TopKResult
from resnet_service.schemas import V2Error
from resnet_service.server.concurrency import map_concurrently
from resnet_service.server.disconnect import cancel_on_disconnect
from resnet_service.server.exception_handlers import V2_PREFIX, openapi_responses
from resnet_service.server.routes import operations
from resnet_service.server.state import AppState, StateDep
from resnet_service.server.uploads import UploadLimits, read_body
from resnet_service.server.v2 import metadata as interface
from resnet_service.server.v2.requests import Image, parse
from resnet_service.server.v2.responses import classes_needed, encode
from resnet_service.server.v2.schemas import (
    InferResponse,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
    request_schema,
)

Value = TypeVar("Value")

router = APIRouter(prefix=V2_PREFIX, tags=["open inference protocol"])

_JSON_LENGTH: Final = "Inference-Header-Content-Length"
_BINARY: Final = "application/octet-stream"
_LONG_JSON: Final = 32_768
"""Bytes; what is longer is read in a thread, so that other requests get their turns between the images."""
_MANY_CLASSES: Final = 10_000
"""Classes of all images; what is more is written in a thread."""

_NOT_READY: Final = openapi_responses(errors.ServiceUnavailable, protocol=True)
_NOT_FOUND: Final[dict[int | str, dict[str, Any]]] = {
    404: {"description": "There is no such model or version", "model": V2Error},
    "default": {"description": "Any other error", "model": V2Error},
}
_OF_ONE_IMAGE: Final = (
    errors.InvalidImageError,
    errors.UnsupportedMediaType,
    errors.PayloadTooLarge,
    errors.InferenceError,
)
_REJECTED: Final = openapi_responses(
    *(errors.InvalidRequestError, errors.RequestTimeout, *_OF_ONE_IMAGE),
    *(errors.OverloadedError, errors.DeadlineExceededError, errors.ServiceUnavailable),
    protocol=True,
)


async def _served(name: str, state: StateDep) -> AppState:
    if name != state.engine.model.name:
        raise HTTPException(404, f"no model is called {name[:50]!r}; there is {state.engine.model.name!r}")
    return state


async def _known_version(version: str) -> None:
    if version != interface.VERSION:
        raise HTTPException(404, f"the model has no version {version[:50]!r}; there is {interface.VERSION!r}")


ServedDep = Annotated[AppState, Depends(_served)]

_MODEL: Final = "/models/{name}"
_VERSION: Final = _MODEL + "/versions/{version}"
_VERSIONED: Final = [Depends(_known_version)]


@router.get("", operation_id="v2_server", summary="Who answers?")
async def server_metadata() -> ServerMetadata:
    """Give the service's version and the protocol's extensions that it knows."""
    return ServerMetadata(
        name="resnet-service", version=__version__, extensions=["binary_tensor_data", "classification"]
    )


@router.get("/health/live", operation_id="v2_live", summary="Is the process alive?", responses=_NOT_READY)
async def live(state: StateDep) -> Live:
    """Answer as /healthz does."""
    await operations.healthz(state)
    return Live(live=True)


@router.get(
    "/health/ready", operation_id="v2_ready", summary="May it be sent requests?", responses=_NOT_READY
)
async def ready(state: StateDep) -> Ready:
    """Answer as /readyz does."""
    await operations.readyz(state)
    return Ready(ready=True)


@router.get(
    _VERSION,
    operation_id="v2_version",
    summary="What does this version of the model take and give?",
    responses=_NOT_FOUND,
    dependencies=_VERSIONED,
    response_model_exclude_none=True,
)
@router.get(
    _MODEL,
    operation_id="v2_model",
    summary="What does the model take and give?",
    responses=_NOT_FOUND,
    response_model_exclude_none=True,
)
async def model_metadata(state: ServedDep) -> ModelMetadata:
    """Describe the model's inputs, of which a request has one, and outputs, all of which can be left out."""
    model, runtime = state.engine.model, state.engine.runtimes[0]
    return ModelMetadata(
        name=model.name,
        versions=[interface.VERSION],
        platform=f"{runtime.name}_{runtime.precision}",
        inputs=list(interface.inputs(model).values()),
        outputs=list(interface.outputs(model).values()),
    )


@router.get(
    f"{_VERSION}/ready",
    operation_id="v2_version_ready",
    summary="May this version of the model be sent requests?",
    responses=_NOT_FOUND | _NOT_READY,
    dependencies=_VERSIONED,
)
@router.get(
    f"{_MODEL}/ready",
    operation_id="v2_model_ready",
    summary="May the model be sent requests?",
    responses=_NOT_FOUND | _NOT_READY,
)
async def model_ready(state: ServedDep) -> ModelReady:
    """Answer as /readyz does."""
    await operations.readyz(state)
    return ModelReady(name=state.engine.model.name, ready=True)


_BINARY_BODY: Final = {_BINARY: {"schema": {"type": "string", "format": "binary"}}}
_PIXEL: Final = "R0lGODlhAQABAIAAAP///wAAACwAAAAAAQABAAACAkQBADs="  # the smallest GIF
_EXAMPLE: Final = {
    "inputs": [{"name": interface.IMAGE, "shape": [1], "datatype": "BYTES", "data": [_PIXEL]}],
    "outputs": [{"name": interface.LABEL}, {"name": interface.PROBABILITY}],
    "parameters": {"top_k": 2},
}
_INFER: Final[dict[str, Any]] = {
    "summary": "Classify images",
    "response_model": InferResponse,
    "responses": {200: {"content": _BINARY_BODY}} | _NOT_FOUND | _REJECTED,
    "openapi_extra": {
        "parameters": [
            {
                "in": "header",
                "name": _JSON_LENGTH,
                "description": "The bytes of the JSON, where binary data follow it.",
                "schema": {"type": "integer"},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": request_schema(), "example": _EXAMPLE},
                **_BINARY_BODY,
            },
        },
    },
}


@router.post(f"{_VERSION}/infer", operation_id="v2_version_infer", dependencies=_VERSIONED, **_INFER)
@router.post(f"{_MODEL}/infer", operation_id="v2_infer", **_INFER)
async def infer(request: Request, state: ServedDep) -> Response:
    """Send one of the inputs; its images share batches with those of all other requests.

    An image that cannot be classified fails the request. `top_k`, a parameter of the request, is how many
    classes `class_id`, `label` and `probability` have.
    """
    json_length = _json_length(request)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise errors.UnsupportedMediaType(f"send the body as it is, not in the encoding {encoding[:50]!r}")
    state.engine.check_admission(state.deadline())  # what cannot be taken is not read either
    with state.metrics.stage_seconds.labels("read").time():
        body = await read_body(request, UploadLimits.from_settings(state.settings))
    with state.acquire_engine() as engine:
        answering = _answer(state, engine, body, json_length)
        answer, answer_json_length = await cancel_on_disconnect(request, answering)
    if answer_json_length is None:
        return Response(answer, media_type="application/json")
    return Response(answer, headers={_JSON_LENGTH: str(answer_json_length)}, media_type=_BINARY)


def _json_length(request: Request) -> int | None:
    given = request.headers.get(_JSON_LENGTH)
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) <= 18):
        raise errors.InvalidRequestError(f"{_JSON_LENGTH} must be a number of bytes, got {given[:50]!r}")
    return int(given)


async def _answer(
    state: AppState, engine: Engine, body: bytearray, json_length: int | None
) -> tuple[bytes, int | None]:
    """Return the answer's body and the length of its JSON, None where that is all."""
    deadline = state.deadline()
    long = (len(body) if json_length is None else json_length) > _LONG_JSON
    limit = state.settings.max_images_per_request
    if long:
        engine.check_admission(deadline)
    asked = await _run(long, engine, deadline, parse, body, json_length, engine.model, limit)
    top_k = state.top_k(engine, asked.parameters.top_k)
    depth = classes_needed(asked, engine.model, top_k)

    async def classify(numbered: tuple[int, Image]) -> TopKResult:
        index, image = numbered
        try:
            if isinstance(image, bytes):
                return (await engine.classify(image, depth, deadline)).best
            return (await engine.classify_crop(image, depth, deadline)).best
        except _OF_ONE_IMAGE as error:
            raise type(error)(f"{asked.input}[{index}]: {error}") from error

    results = await map_concurrently(engine, classify, list(enumerate(asked.images)))
    many = len(results) * depth > _MANY_CLASSES
    return await _run(many, engine, deadline, encode, asked, engine.model, top_k, results)


async def _run(
    long: bool, engine: Engine, deadline: float, function: Callable[..., Value], *arguments: object
) -> Value:
    """Call `function`, in a decoding thread where it takes `long`."""
    return await engine.run_in_decode_pool(deadline, function, *arguments) if long else function(*arguments)
