"""Triton's model repository extension: the models of the service, and how they are loaded and unloaded.

Only models of the settings can be loaded, those of the model repository or those that are named one by one.
"""

import asyncio
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Request, Security
from fastapi.responses import Response
from pydantic import ConfigDict, RootModel, ValidationError, model_validator
from pydantic_core import from_json

from resnet_service import errors
from resnet_service.hints import StrictModel, input_error, summarize_errors
from resnet_service.schemas import ModelStatus
from resnet_service.server.auth import api_key_auth
from resnet_service.server.exception_handlers import V2_PREFIX, openapi_responses
from resnet_service.server.parameters import NO_PARAMETERS
from resnet_service.server.state import AppState
from resnet_service.server.v2.dependencies import AUTH, NOT_FOUND, NOT_READY, Authorized

router = APIRouter(prefix=f"{V2_PREFIX}/repository", tags=["open inference protocol"])

_MAX_BODY_BYTES: Final = 65_536
_BODY_ERRORS: Final = openapi_responses(
    *(errors.InvalidRequestError, errors.PayloadTooLarge, errors.RequestTimeout, errors.UnsupportedMediaType),
    protocol=True,
)
_RELOAD_ERRORS: Final = openapi_responses(errors.Conflict, errors.ReloadError, protocol=True)

AdminAuthorized = Annotated[AppState, Security(api_key_auth, scopes=["admin"])]
"""The application's state, for requests with an API key for administration."""


class _RequestBody(StrictModel):
    model_config = ConfigDict(frozen=True, strict=True)
    kind = "field"


class IndexRequest(_RequestBody):
    """The body of a request for the index; with `ready`, only models that serve requests are returned."""

    ready: bool = False


class LoadParameters(_RequestBody):
    """Parameters of a load: none, because the settings of the service say what is loaded."""

    kind = "parameter"

    @model_validator(mode="before")
    @classmethod
    def _reject_overrides(cls, values: Any) -> Any:
        if isinstance(values, dict) and any(name == "config" or name.startswith("file:") for name in values):
            raise input_error(
                "config and files are not supported; load reads the model of the settings or the repository"
            )
        return values


class LoadRequest(_RequestBody):
    """The body of a load."""

    parameters: LoadParameters = LoadParameters()


class UnloadParameters(_RequestBody):
    """Parameters of an unload; models do not depend on each other, so that it changes nothing."""

    kind = "parameter"

    unload_dependents: bool = False


class UnloadRequest(_RequestBody):
    """The body of an unload."""

    parameters: UnloadParameters = UnloadParameters()


class ModelIndex(RootModel[list[ModelStatus]]):
    """All versions of all models."""


RequestBody = TypeVar("RequestBody", bound=_RequestBody)


def _body(model: type[_RequestBody]) -> dict[str, Any]:
    """Return the OpenAPI description of an optional JSON body, with the definitions inlined."""
    schema = model.model_json_schema()
    for field in schema.get("properties", {}).values():
        if reference := field.pop("$ref", None):
            field.update(schema["$defs"][reference.rpartition("/")[2]])
    schema.pop("$defs", None)
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}


@router.post(
    "/index",
    operation_id="v2_repository_index",
    summary="Models and their states",
    responses=AUTH | _BODY_ERRORS | NOT_READY,
    dependencies=[NO_PARAMETERS],
    openapi_extra=_body(IndexRequest),
)
async def index(request: Request, state: Authorized) -> ModelIndex:
    """Return the models of the service: READY, LOADING (warming up), or UNAVAILABLE with the reason.

    While a model is reloaded, it is READY, because the previous one serves requests. A model that is not
    loaded has no version.
    """
    body = await _read_body(request, state, IndexRequest)
    statuses = await state.backend.model_statuses()
    return ModelIndex([status for status in statuses if status.state == "READY" or not body.ready])


@router.post(
    "/models/{name}/load",
    operation_id="v2_repository_load",
    summary="Load a model",
    response_class=Response,
    responses={200: {"description": "The model is loaded and warmed up."}}
    | NOT_FOUND
    | _BODY_ERRORS
    | _RELOAD_ERRORS,
    dependencies=[NO_PARAMETERS],
    openapi_extra=_body(LoadRequest),
)
async def load(request: Request, name: str, state: AdminAuthorized) -> Response:
    """Load all versions of a model, again if it is loaded; the response has no body.

    The versions are loaded and warmed up beside those that serve, and then used in one step. If one of them
    fails, nothing changes. Requires an API key with the scope `admin`.
    """
    await _read_body(request, state, LoadRequest)
    await state.backend.load(name)
    return Response()


@router.post(
    "/models/{name}/unload",
    operation_id="v2_repository_unload",
    summary="Unload a model",
    response_class=Response,
    responses={200: {"description": "The model is unloaded."}}
    | NOT_FOUND
    | _BODY_ERRORS
    | openapi_responses(errors.Conflict, protocol=True),
    dependencies=[NO_PARAMETERS],
    openapi_extra=_body(UnloadRequest),
)
async def unload(request: Request, name: str, state: AdminAuthorized) -> Response:
    """Unload all versions of a model; requests that were admitted are finished. The response has no body.

    The last model cannot be unloaded. Requires an API key with the scope `admin`.
    """
    await _read_body(request, state, UnloadRequest)
    await state.backend.unload(name)
    return Response()


async def _read_body(request: Request, state: AppState, model: type[RequestBody]) -> RequestBody:
    """Return the body of a request, which may be empty.

    Raises InvalidRequestError, PayloadTooLarge, RequestTimeout and UnsupportedMediaType.
    """
    if (encoding := request.headers.get("content-encoding", "identity").lower()) != "identity":
        raise errors.UnsupportedMediaType(f"Content-Encoding {encoding[:50]!r} is not supported")
    body = bytearray()
    timeout_s = state.settings.read_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _MAX_BODY_BYTES:
                    raise errors.PayloadTooLarge(f"the body is larger than {_MAX_BODY_BYTES:,} bytes")
    except TimeoutError as error:
        raise errors.RequestTimeout(f"the body was not received within {timeout_s:g} s") from error
    try:
        return model.model_validate(from_json(body, allow_inf_nan=False) if body else {})
    except ValidationError as error:
        raise errors.InvalidRequestError(
            summarize_errors(error.errors(include_url=False, include_context=False, include_input=False))
        ) from error
    except ValueError as error:
        raise errors.InvalidRequestError(f"invalid JSON: {error}") from error
