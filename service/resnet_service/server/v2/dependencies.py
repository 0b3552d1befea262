"""What the routes of the protocol share: authorization, the check of model and version, and responses."""

from typing import Annotated, Any, Final

from fastapi import Depends, Security

from resnet_service import errors
from resnet_service.schemas import V2Error
from resnet_service.server.auth import api_key_auth
from resnet_service.server.exception_handlers import AUTH_ERRORS, openapi_responses
from resnet_service.server.state import AppState
from resnet_service.server.v2 import service

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


def check_model(name: str, state: AppState) -> None:
    """Raise ModelNotFound if the server does not have a model with this name."""
    service.check_model(state.backend.served_model.model, name)


async def _authorize_model(name: str, state: Authorized) -> AppState:
    check_model(name, state)
    return state


async def _check_version(name: str, version: str, state: Authorized) -> None:
    service.check_model(state.backend.served_model.model, name, version)


ModelDep = Annotated[AppState, Depends(_authorize_model)]
"""The application's state, for a path that names the current model."""

CHECK_VERSION: Final = Depends(_check_version)
"""Dependency of routes whose path names a version."""
