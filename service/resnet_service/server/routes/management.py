"""Routes of the management port and of the main port: health probes, metrics, and reload."""

from typing import Annotated

from fastapi import APIRouter, Request, Security
from fastapi.responses import Response

from resnet_service import errors
from resnet_service.schemas import HealthResponse, InfoResponse
from resnet_service.server.auth import api_key_auth
from resnet_service.server.exception_handlers import AUTH_ERRORS, openapi_responses
from resnet_service.server.parameters import NO_PARAMETERS
from resnet_service.server.state import AppState, StateDep

router = APIRouter(tags=["operations"])


@router.get("/healthz", summary="Liveness probe", responses=openapi_responses(errors.ServiceUnavailable))
async def healthz(state: StateDep) -> HealthResponse:
    """Return 200 while the device completes batches, however long the queue is.

    Returns 503 once the device has failed, or while a batch, a decode or one step of the main port's event
    loop runs longer than the stall timeout; the process then has to be restarted.
    """
    await state.backend.check_alive()
    return HealthResponse(status="ok")


@router.get("/readyz", summary="Readiness probe", responses=openapi_responses(errors.ServiceUnavailable))
async def readyz(state: StateDep) -> HealthResponse:
    """Return 200 once the model is warmed up, and 503 before that, while draining, and after a failure."""
    await state.backend.check_ready()
    return HealthResponse(status="ready")


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={
        200: {"description": "Metrics as text", "content": {"text/plain": {}}},
        **openapi_responses(*AUTH_ERRORS),
    },
)
async def metrics(
    request: Request, state: Annotated[AppState, Security(api_key_auth, scopes=["metrics"])]
) -> Response:
    """Return the metrics in Prometheus text format, or in OpenMetrics format if `Accept` names it."""
    content, content_type = await state.backend.render_metrics(request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": content_type})


@router.post(
    "/reload",
    summary="Reload the model and the API keys",
    responses=openapi_responses(
        errors.InvalidRequestError, errors.Conflict, errors.ReloadError, *AUTH_ERRORS
    ),
    dependencies=[NO_PARAMETERS],
)
async def reload(state: Annotated[AppState, Security(api_key_auth, scopes=["admin"])]) -> InfoResponse:
    """Load the models, their weights and the API keys again, and use them once they are warmed up.

    Requires an API key with the scope `admin`. No request is lost: each gets its response from the previous
    or from the new model. If a new model cannot be loaded or fails its warm-up, the previous models
    continue to serve, and the response has the reason.
    """
    await state.backend.reload()
    return await state.backend.info()
