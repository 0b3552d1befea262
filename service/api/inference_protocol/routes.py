"""The protocol's routes. Their errors are the service's own, with the protocol's body."""

from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import HTTPException
from fastapi.responses import Response

from service import __version__, errors
from service.api import operations, problems
from service.api.disconnect import while_connected
from service.api.inference_protocol import interface
from service.api.inference_protocol.answers import classes_needed, encode
from service.api.inference_protocol.messages import (
    InferResponse,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
    request_schema,
)
from service.api.inference_protocol.requests import Picture, parse
from service.api.service import Service, ServiceDep
from service.api.turns import in_turns
from service.api.uploads import Limits, read_body
from service.engine import Engine
from service.runtimes import TopK
from service.schemas import ProtocolError

Value = TypeVar("Value")

router = APIRouter(prefix=problems.PROTOCOL, tags=["open inference protocol"])

_JSON_LENGTH: Final = "Inference-Header-Content-Length"
_BINARY: Final = "application/octet-stream"
_LONG_JSON: Final = 32_768
"""Bytes; what is longer is read in a thread, so that other requests get their turns between the pictures."""
_MANY_CLASSES: Final = 10_000
"""Classes of all pictures; what is more is written in a thread."""

_NOT_READY: Final = problems.responses(errors.NotReady, protocol=True)
_NOT_FOUND: Final[dict[int | str, dict[str, Any]]] = {
    404: {"description": "There is no such model or version", "model": ProtocolError},
    "default": {"description": "Any other error", "model": ProtocolError},
}
_OF_ONE_PICTURE: Final = (
    errors.InvalidImage,
    errors.UnsupportedMedia,
    errors.PayloadTooLarge,
    errors.InferenceFailed,
)
_REFUSED: Final = problems.responses(
    *(errors.InvalidRequest, errors.ReadTimeout, *_OF_ONE_PICTURE),
    *(errors.Overloaded, errors.DeadlineExceeded, errors.NotReady),
    protocol=True,
)


async def _served(name: str, service: ServiceDep) -> Service:
    if name != service.engine.model.name:
        raise HTTPException(404, f"no model is called {name[:50]!r}; there is {service.engine.model.name!r}")
    return service


async def _known_version(version: str) -> None:
    if version != interface.VERSION:
        raise HTTPException(404, f"the model has no version {version[:50]!r}; there is {interface.VERSION!r}")


ServedDep = Annotated[Service, Depends(_served)]

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
async def live(service: ServiceDep) -> Live:
    """Answer as /healthz does."""
    await operations.healthz(service)
    return Live(live=True)


@router.get(
    "/health/ready", operation_id="v2_ready", summary="May it be sent requests?", responses=_NOT_READY
)
async def ready(service: ServiceDep) -> Ready:
    """Answer as /readyz does."""
    await operations.readyz(service)
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
async def model_metadata(service: ServedDep) -> ModelMetadata:
    """Describe the model's inputs, of which a request has one, and outputs, all of which can be left out."""
    model, runtime = service.engine.model, service.engine.runtimes[0]
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
async def model_ready(service: ServedDep) -> ModelReady:
    """Answer as /readyz does."""
    await operations.readyz(service)
    return ModelReady(name=service.engine.model.name, ready=True)


_BINARY_BODY: Final = {_BINARY: {"schema": {"type": "string", "format": "binary"}}}
_PIXEL: Final = "R0lGODlhAQABAIAAAP///wAAACwAAAAAAQABAAACAkQBADs="  # the smallest GIF
_EXAMPLE: Final = {
    "inputs": [{"name": interface.IMAGE, "shape": [1], "datatype": "BYTES", "data": [_PIXEL]}],
    "outputs": [{"name": interface.LABEL}, {"name": interface.PROBABILITY}],
    "parameters": {"top_k": 2},
}
_INFER: Final[dict[str, Any]] = {
    "summary": "Classify pictures",
    "response_model": InferResponse,
    "responses": {200: {"content": _BINARY_BODY}} | _NOT_FOUND | _REFUSED,
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
async def infer(request: Request, service: ServedDep) -> Response:
    """Send one of the inputs; its pictures share batches with those of all other requests.

    A picture that cannot be classified fails the request. `top_k`, a parameter of the request, is how many
    classes `class_id`, `label` and `probability` have.
    """
    json_length = _json_length(request)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise errors.UnsupportedMedia(f"send the body as it is, not in the encoding {encoding[:50]!r}")
    service.engine.admit(service.deadline())  # what cannot be taken is not read either
    with service.metrics.stage_seconds.labels("read").time():
        body = await read_body(request, Limits.of(service.settings))
    with service.lend() as engine:
        answering = _answer(service, engine, body, json_length)
        answer, answer_json_length = await while_connected(request, answering)
    if answer_json_length is None:
        return Response(answer, media_type="application/json")
    return Response(answer, headers={_JSON_LENGTH: str(answer_json_length)}, media_type=_BINARY)


def _json_length(request: Request) -> int | None:
    given = request.headers.get(_JSON_LENGTH)
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) <= 18):
        raise errors.InvalidRequest(f"{_JSON_LENGTH} must be a number of bytes, got {given[:50]!r}")
    return int(given)


async def _answer(
    service: Service, engine: Engine, body: bytearray, json_length: int | None
) -> tuple[bytes, int | None]:
    """Return the answer's body and the length of its JSON, None where that is all."""
    deadline = service.deadline()
    long = (len(body) if json_length is None else json_length) > _LONG_JSON
    limit = service.settings.max_files
    if long:
        engine.admit(deadline)
    asked = await _run(long, engine, deadline, parse, body, json_length, engine.model, limit)
    top_k = service.top_k(engine, asked.parameters.top_k)
    depth = classes_needed(asked, engine.model, top_k)

    async def classify(numbered: tuple[int, Picture]) -> TopK:
        index, picture = numbered
        try:
            if isinstance(picture, bytes):
                return (await engine.classify(picture, depth, deadline)).best
            return (await engine.classify_crop(picture, depth, deadline)).best
        except _OF_ONE_PICTURE as error:
            raise type(error)(f"{asked.input}[{index}]: {error}") from error

    results = await in_turns(engine, classify, list(enumerate(asked.pictures)))
    many = len(results) * depth > _MANY_CLASSES
    return await _run(many, engine, deadline, encode, asked, engine.model, top_k, results)


async def _run(
    long: bool, engine: Engine, deadline: float, function: Callable[..., Value], *arguments: object
) -> Value:
    """Call `function`, in a decoding thread where it takes `long`."""
    return await engine.in_decoder(deadline, function, *arguments) if long else function(*arguments)
