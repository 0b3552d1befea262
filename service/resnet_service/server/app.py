"""Wire the application: a loaded service in, a FastAPI application out."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from resnet_service import __version__, errors
from resnet_service.server.exception_handlers import add_exception_handlers, openapi_responses
from resnet_service.server.middleware import CLIENT_CLOSED, ObservabilityMiddleware
from resnet_service.server.routes import operations, predict
from resnet_service.server.state import AppState
from resnet_service.server.upload_middleware import AuthMiddleware
from resnet_service.server.v2 import routes as inference_protocol


def create_app(state: AppState, *, start_ready: bool = False) -> FastAPI:
    """Build the application; its lifespan warms the engine up and closes it.

    With `start_ready` the start ends once it is warm, for servers that do not ask /readyz.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        state.engine.start()
        if start_ready:
            await state.engine.wait_until_warm()
        yield
        await state.close(timeout_s=1.0)  # the server has drained: only a stuck batch is left

    app = FastAPIOffline(
        title="resnet-service",
        version=__version__,
        summary="Classify images: POST one to /predict.",
        lifespan=lifespan,
        redoc_url=None,
        # Generated clients name their methods so: paths may change, these stay.
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.app_state = state
    guarded = (errors.Unauthorized, errors.Forbidden, errors.TooManyRequests)
    for router in (predict.router, operations.router):
        app.include_router(router, responses=openapi_responses(*guarded))
    app.include_router(inference_protocol.router, responses=openapi_responses(*guarded, protocol=True))
    add_exception_handlers(app)
    app.add_exception_handler(ClientDisconnect, _client_is_gone)
    app.add_middleware(AuthMiddleware, state=state)
    if origins := state.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=re.split(r"[\s,]+", origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "Server-Timing", "X-Request-ID"],
        )
    app.add_middleware(
        ObservabilityMiddleware,
        metrics=state.metrics,
        tracer=state.tracer,
        access_log=state.settings.access_log,
    )
    return app


async def _client_is_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED)  # for the log and the metrics; nobody reads it
