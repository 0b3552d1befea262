"""Wire the application: a loaded service in, a FastAPI application out."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from service import __version__, errors
from service.api import operations, predict, problems
from service.api.guard import Guard
from service.api.inference_protocol import routes as inference_protocol
from service.api.middleware import CLIENT_CLOSED, Observe
from service.api.service import Service


def create_app(service: Service, *, start_ready: bool = False) -> FastAPI:
    """Build the application; its lifespan warms the engine up and closes it.

    With `start_ready` the start ends once it is warm, for servers that do not ask /readyz.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        if start_ready:
            await service.engine.warm()
        yield
        await service.close(timeout_s=1.0)  # the server has drained: only a stuck batch is left

    app = FastAPIOffline(
        title="resnet-service",
        version=__version__,
        summary="Classify pictures: POST one to /predict.",
        lifespan=lifespan,
        redoc_url=None,
        # Generated clients name their methods so: paths may change, these stay.
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.service = service
    guarded = (errors.Unauthorized, errors.Forbidden, errors.RateLimited)
    for router in (predict.router, operations.router):
        app.include_router(router, responses=problems.responses(*guarded))
    app.include_router(inference_protocol.router, responses=problems.responses(*guarded, protocol=True))
    problems.install(app)
    app.add_exception_handler(ClientDisconnect, _client_is_gone)
    app.add_middleware(Guard, service=service)
    if origins := service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=re.split(r"[\s,]+", origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "Server-Timing", "X-Request-ID"],
        )
    app.add_middleware(
        Observe, metrics=service.metrics, traces=service.traces, access_log=service.settings.access_log
    )
    return app


async def _client_is_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED)  # for the log and the metrics; nobody reads it
