"""Routes of the management port and of the main port: health probes, metrics, and reload."""

from typing import Annotated

from fastapi import APIRouter, Request, Security
from fastapi.responses import Response
from prometheus_client.exposition import choose_encoder

from resnet_service import errors
from resnet_service.schemas import HealthResponse, InfoResponse
from resnet_service.server.auth import api_key_auth
from resnet_service.server.exception_handlers import AUTH_ERRORS, openapi_responses
from resnet_service.server.routes.admin import info
from resnet_service.server.state import AppState, StateDep

router = APIRouter(tags=["operations"])


@router.get("/healthz", summary="Liveness probe", responses=openapi_responses(errors.ServiceUnavailable))
async def healthz(state: StateDep) -> HealthResponse:
    """Return 200 while the device completes batches, however long the queue is.

    Returns 503 once the device has failed, or while a batch, a decode or one step of the main port's event
    loop runs longer than the stall timeout; the process then has to be restarted.
    """
    engine = state.engine
    if engine.fatal_error is not None:
        raise errors.ServiceUnavailable("the model or the device has failed; restart the process")
    if engine.is_stalled:
        raise errors.ServiceUnavailable("a batch or the decoding of a JPEG exceeds the stall timeout")
    if state.heartbeat.age_s > state.settings.stall_timeout_s:  # can be seen from the management port only
        raise errors.ServiceUnavailable("the event loop has not run for the stall timeout")
    return HealthResponse(status="ok")


@router.get("/readyz", summary="Readiness probe", responses=openapi_responses(errors.ServiceUnavailable))
async def readyz(state: StateDep) -> HealthResponse:
    """Return 200 once the model is warmed up, and 503 before that, while draining, and after a failure."""
    if not state.engine.is_ready:
        raise errors.ServiceUnavailable("the service is warming up, draining or has failed")
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
    try:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
    except (TypeError, ValueError):  # an invalid version in Accept
        encode, content_type = choose_encoder("")
    return Response(encode(state.metrics.registry), headers={"Content-Type": content_type})


@router.post(
    "/reload",
    summary="Reload the model and the API keys",
    responses=openapi_responses(errors.Conflict, errors.ReloadError, *AUTH_ERRORS),
)
async def reload(state: Annotated[AppState, Security(api_key_auth, scopes=["admin"])]) -> InfoResponse:
    """Load the model, its weights and the API keys again, and use them once the model is warmed up.

    Requires an API key with the scope `admin`. No request is lost: each gets its response from the previous
    or from the new model. If the new model cannot be loaded or fails its warm-up, the previous model
    continues to serve, and the response has the reason.
    """
    await state.reload()
    return await info(state)
