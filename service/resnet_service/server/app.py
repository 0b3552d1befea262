"""Assemble the FastAPI application: routes, exception handlers and middleware around an `AppState`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.telemetry import TelemetryConfig
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from resnet_service import __version__
from resnet_service.proxies import parse_networks
from resnet_service.server.exception_handlers import add_exception_handlers
from resnet_service.server.middleware import HeadMiddleware, ObservabilityMiddleware
from resnet_service.server.model_metrics import CLIENT_CLOSED
from resnet_service.server.proxy_headers import ProxyMiddleware
from resnet_service.server.routes import admin, api_page, embed, explain, management, page, predict
from resnet_service.server.state import AppState
from resnet_service.server.v2 import model_config, repository, statistics
from resnet_service.server.v2 import routes as v2

__all__ = ["create_app", "create_management_app"]

_NO_TELEMETRY: Final[TelemetryConfig] = {"tracing": False, "metrics": False, "logs": False}
"""FastAPI's own; `tracing.py` and `metrics.py` have more."""

_V2_ROUTERS: Final = (
    statistics.router,  # before the metadata, because `stats` could be the name of a model
    model_config.router,
    repository.router,
    v2.router,
)


def create_app(state: AppState, *, start_ready: bool = False) -> FastAPI:
    """Create the application; its lifespan starts the warm-up of the engine and closes the state.

        app = create_app(build_app_state(Settings(model="resnet50")), start_ready=True)

    With `start_ready`, the startup waits for the end of the warm-up; use it with servers that do not poll
    /readyz.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        state.start()
        if start_ready:
            await state.backend.wait_until_warm()
        yield
        await state.close()

    # FastAPIOffline has the assets of the API page, so that it works without internet access. The page itself
    # is in `api_page`, because it needs a content security policy of its own.
    docs, no_docs = partial(FastAPIOffline, docs_url=None), partial(FastAPI, openapi_url=None)
    app = (docs if state.settings.api_docs else no_docs)(
        title="resnet-service",
        version=__version__,
        summary="Image classification: POST an image to /predict.",
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,  # behind a proxy, the redirect would lead out of its prefix, and lose a body
        telemetry=_NO_TELEMETRY,
        # Generated clients name their methods by operation id; these stay the same if a path changes.
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.app_state = state
    classifying = (predict.router, embed.router, explain.router)
    routers = (*classifying, management.router, admin.router, *_V2_ROUTERS, page.router)
    for router in routers:
        app.include_router(router)
    if state.settings.web_page:
        app.include_router(page.files_router)
    if state.settings.api_docs:
        app.include_router(api_page.router)
    add_exception_handlers(app)
    app.add_exception_handler(ClientDisconnect, _client_disconnected)
    _add_middleware(app, state)
    return app


def create_management_app(state: AppState) -> FastAPI:
    """Create the application of the management port: the probes, the metrics and /reload."""
    app = FastAPI(openapi_url=None, telemetry=_NO_TELEMETRY, redirect_slashes=False)
    app.state.app_state = state
    app.include_router(management.router)
    add_exception_handlers(app)
    _add_observability(app, state)
    return app


def _add_middleware(app: FastAPI, state: AppState) -> None:
    """Add the middleware, the innermost first."""
    if origins := state.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins.split(","),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "Server-Timing", "X-Request-ID", *explain.HEADER_NAMES],
        )
    _add_observability(app, state)


def _add_observability(app: FastAPI, state: AppState) -> None:
    app.add_middleware(
        ObservabilityMiddleware,
        metrics=state.metrics,
        counters=state.backend.request_counters,
        tracer=state.tracer,
        settings=state.settings,
    )
    app.add_middleware(HeadMiddleware)
    root_path, trusted = state.settings.root_path, parse_networks(state.settings.trusted_proxies)
    if root_path or trusted:
        app.add_middleware(ProxyMiddleware, root_path=root_path, trusted=trusted)


async def _client_disconnected(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED)  # for the log and the metrics; it cannot be sent
