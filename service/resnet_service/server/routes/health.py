"""Routes for monitoring: the health probes, the metrics, and the redirect to the API page."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Request, Security
from fastapi.responses import RedirectResponse, Response
from prometheus_client.exposition import choose_encoder

from resnet_service import errors
from resnet_service.schemas import HealthResponse
from resnet_service.server.auth import api_key_auth
from resnet_service.server.exception_handlers import AUTH_ERRORS, openapi_responses
from resnet_service.server.state import AppState, StateDep

router = APIRouter(tags=["operations"])


@router.get("/", include_in_schema=False)
async def root(request: Request, state: StateDep) -> RedirectResponse:
    """Redirect to the API page."""
    if not state.settings.api_docs:
        raise HTTPException(404)
    return RedirectResponse(request.url_for("custom_swagger_ui_html").path)


@router.get("/healthz", summary="Liveness probe", responses=openapi_responses(errors.ServiceUnavailable))
async def healthz(state: StateDep) -> HealthResponse:
    """Return 200 while the device completes batches, however long the queue is.

    Returns 503 once the device has failed, or while a batch or a decode runs longer than the stall timeout;
    the process then has to be restarted.
    """
    engine = state.engine
    if engine.fatal_error is not None:
        raise errors.ServiceUnavailable("the model or the device has failed; restart the process")
    if engine.is_stalled:
        raise errors.ServiceUnavailable("a batch or the decoding of a JPEG exceeds the stall timeout")
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
