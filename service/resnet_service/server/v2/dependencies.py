"""What the routes of the protocol share: authorization, the check of model and version, and responses."""

from typing import Annotated, Any, Final

from fastapi import Depends, Security
from fastapi.exceptions import HTTPException

from resnet_service import errors
from resnet_service.schemas import V2Error
from resnet_service.server.auth import api_key_auth
from resnet_service.server.exception_handlers import AUTH_ERRORS, openapi_responses
from resnet_service.server.state import AppState
from resnet_service.server.v2 import schemas

MODEL_PATH: Final = "/models/{name}"
VERSION_PATH: Final = MODEL_PATH + "/versions/{version}"

INVALID: Final = openapi_responses(errors.InvalidRequestError, protocol=True)
NOT_READY: Final = openapi_responses(errors.ServiceUnavailable, protocol=True)
AUTH: Final = openapi_responses(*AUTH_ERRORS, protocol=True)
NOT_FOUND: Final[dict[int | str, dict[str, Any]]] = AUTH | {
    404: {"description": "Unknown model or version", "model": V2Error},
    "default": {"description": "Any other error", "model": V2Error},
}

Authorized = Annotated[AppState, Security(api_key_auth, scopes=["predict"])]
"""The application's state, for requests with an API key for predictions."""


def check_model(name: str, state: AppState) -> None:
    """Raise 404 if the server does not have a model with this name."""
    model = state.backend.served_model.model.name
    if name != model:
        raise HTTPException(404, f"unknown model {name[:50]!r}; the server has {model!r}")


async def _authorize_model(name: str, state: Authorized) -> AppState:
    check_model(name, state)
    return state


async def _check_version(version: str, _: Authorized) -> None:
    if version != schemas.MODEL_VERSION:
        raise HTTPException(
            404, f"unknown version {version[:50]!r}; the model has version {schemas.MODEL_VERSION!r}"
        )


ModelDep = Annotated[AppState, Depends(_authorize_model)]
"""The application's state, for a path that names the current model."""

CHECK_VERSION: Final = Depends(_check_version)
"""Dependency of routes whose path names a version."""
