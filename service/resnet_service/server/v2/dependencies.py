"""What the routes of the protocol share: authorization, the check of model and version, and responses."""

from typing import Annotated, Any, Final

from fastapi import Depends, Request, Security

from resnet_service import errors
from resnet_service.inference.served_model import ServedModel
from resnet_service.schemas import V2Error
from resnet_service.server.auth import api_key_auth
from resnet_service.server.exception_handlers import AUTH_ERRORS, openapi_responses
from resnet_service.server.state import AppState

MODEL_PATH: Final = "/models/{name}"
VERSION_PATH: Final = MODEL_PATH + "/versions/{version}"

INVALID: Final = openapi_responses(errors.InvalidRequestError, protocol=True)
NOT_READY: Final = openapi_responses(errors.ServiceUnavailable, protocol=True)
AUTH: Final = openapi_responses(*AUTH_ERRORS, protocol=True)
NOT_FOUND: Final[dict[int | str, dict[str, Any]]] = (
    AUTH
    | openapi_responses(errors.ModelNotFound, protocol=True)
    | {"default": {"description": "Any other error", "model": V2Error}}
)

Authorized = Annotated[AppState, Security(api_key_auth, scopes=["predict"])]
"""The application's state, for requests with an API key for predictions."""


async def _find_model(request: Request, name: str, state: Authorized) -> ServedModel:
    return state.backend.models.find(name, request.path_params.get("version"))


async def _declare_version(version: str) -> None:
    """Declare the parameter of the path for the OpenAPI schema; `_find_model` reads it."""


ModelDep = Annotated[ServedModel, Depends(_find_model)]
"""The model that the path names, or its version, for requests with an API key for predictions."""

VERSION: Final = Depends(_declare_version)
"""Dependency of routes whose path names a version."""
