"""Everything but predictions: probes, metrics, what is served, and the benchmark."""

from typing import Annotated, Final

import torch
import torchvision
from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from prometheus_client.exposition import choose_encoder

from resnet_service import __version__, errors
from resnet_service.benchmark.timing import WARMUP_BATCHES, time_batches
from resnet_service.images import FORMATS
from resnet_service.machine import hardware_info
from resnet_service.server.disconnect import cancel_on_disconnect
from resnet_service.server.exception_handlers import openapi_responses
from resnet_service.server.schemas import BenchResponse, HealthResponse, InfoResponse, RequestLimits
from resnet_service.server.state import AppState, StateDep

router = APIRouter(tags=["operations"])

_DEFAULT_BATCH_SIZES: Final = (1, 4, 8, 16, 32)


@router.get("/", include_in_schema=False)
async def root(request: Request) -> RedirectResponse:
    """Lead to the OpenAPI page."""
    return RedirectResponse(request.url_for("custom_swagger_ui_html").path)


@router.get(
    "/healthz", summary="Is the process alive?", responses=openapi_responses(errors.ServiceUnavailable)
)
async def healthz(state: StateDep) -> HealthResponse:
    """Yes while the device answers, however long the queue; no once it failed or a batch is stuck on it."""
    engine = state.engine
    if engine.fatal_error is not None:
        raise errors.ServiceUnavailable("the model or its device has failed; the process must be replaced")
    if engine.is_stalled:
        raise errors.ServiceUnavailable("a batch has been on the device for too long")
    return HealthResponse(status="ok")


@router.get(
    "/readyz", summary="May it be sent requests?", responses=openapi_responses(errors.ServiceUnavailable)
)
async def readyz(state: StateDep) -> HealthResponse:
    """Yes once the model is loaded and warmed up, until the service drains or fails."""
    if not state.engine.is_ready:
        raise errors.ServiceUnavailable("warming up, draining or failed")
    return HealthResponse(status="ready")


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"description": "Metrics as text", "content": {"text/plain": {}}}},
)
async def metrics(request: Request, state: StateDep) -> Response:
    """In Prometheus' text format, or OpenMetrics where the client asks for it."""
    try:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
    except (TypeError, ValueError):  # a version in Accept that is no version
        encode, content_type = choose_encoder("")
    return Response(encode(state.metrics.registry), headers={"Content-Type": content_type})


@router.get("/info", summary="What is served, on what, within which limits")
async def info(state: StateDep) -> InfoResponse:
    """Describe the model, the device, the versions, the machine and the limits."""
    model, runtime, settings = state.engine.model, state.engine.runtimes[0], state.settings
    return InfoResponse(
        model=model.name,
        source=model.source,
        labels=len(model.labels),
        input_size=model.preprocessing.crop,
        device=state.engine.devices,
        precision=runtime.precision,
        runtime=runtime.name,
        streams=len(state.engine.runtimes),
        version=__version__,
        versions={"torch": torch.__version__, "torchvision": torchvision.__version__},
        hardware=hardware_info(),
        limits=RequestLimits(
            max_upload_bytes=int(settings.max_upload_mb * 1e6),
            max_pixels=int(settings.max_megapixels * 1e6),
            max_images_per_request=settings.max_images_per_request,
            max_batch=state.engine.max_batch,
            max_queue=settings.max_queue,
            request_timeout_s=settings.request_timeout_s,
            formats=list(FORMATS),
        ),
    )


@router.get(
    "/bench",
    name="bench",
    summary="Measure the loaded model on the loaded device",
    responses=openapi_responses(
        errors.InvalidRequestError, errors.Conflict, errors.ServiceUnavailable, errors.InferenceError
    ),
)
async def bench_(
    request: Request,
    state: StateDep,
    batch_sizes: Annotated[
        str | None, Query(description="Comma-separated; by default 1,4,8,16,32 up to the largest batch.")
    ] = None,
    iterations: Annotated[int, Query(ge=1, le=1000, description="Timed batches of each size.")] = 20,
) -> BenchResponse:
    """Run noise on the first device, between the batches of requests. One run at a time."""
    sizes = _batch_sizes(state, batch_sizes)
    images_needed = sum(sizes) * (iterations + WARMUP_BATCHES)
    if images_needed > state.settings.bench_max_images:
        raise errors.InvalidRequestError(
            f"{images_needed} images are more than the limit of {state.settings.bench_max_images}: "
            "ask for fewer iterations or smaller batches"
        )
    with state.acquire_engine() as engine:
        if not engine.is_ready:
            raise errors.ServiceUnavailable("warming up, draining or failed")
        if state.bench_lock.locked():
            raise errors.Conflict("a benchmark is running; try again when it has ended")
        async with state.bench_lock:
            rows = await cancel_on_disconnect(
                request, time_batches(engine.run_benchmark_batch, sizes, iterations)
            )
    runtime = engine.runtimes[0]
    return BenchResponse(
        model=engine.model.name,
        device=runtime.device,
        precision=runtime.precision,
        runtime=runtime.name,
        hardware=hardware_info(),
        rows=rows,
    )


@router.post(
    "/reload",
    summary="Load the model anew, and serve it once it is warm",
    responses=openapi_responses(errors.Conflict, errors.ReloadError),
)
async def reload(state: StateDep) -> InfoResponse:
    """Read model, weights and API keys again from where they were; needs an API key with the part `admin`.

    Every request is answered, by the old model or by the new one. Where the new one cannot be had or fails
    its warm-up, the old one stays, and the answer says why.
    """
    await state.reload()
    return await info(state)


def _batch_sizes(state: AppState, text: str | None) -> list[int]:
    largest = state.engine.max_batch
    if text is None:
        return [size for size in _DEFAULT_BATCH_SIZES if size <= largest]
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) <= 5 for part in parts):
        raise errors.InvalidRequestError(
            f"batch_sizes must be whole numbers with commas between, got {text[:50]!r}"
        )
    sizes = [int(part) for part in parts]
    if not all(1 <= size <= largest for size in sizes):
        raise errors.InvalidRequestError(f"batch sizes must be from 1 to {largest}")
    return sizes
