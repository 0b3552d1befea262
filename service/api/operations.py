"""Everything but predictions: probes, metrics, what is served, and the benchmark."""

from typing import Annotated, Final

import torch
import torchvision
from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from prometheus_client.exposition import choose_encoder

from service import __version__, bench, errors, hardware, images
from service.api import problems
from service.api.disconnect import while_connected
from service.api.schemas import Bench, Health, Info, Limits
from service.api.service import Service, ServiceDep

router = APIRouter(tags=["operations"])

_DEFAULT_BATCH_SIZES: Final = (1, 4, 8, 16, 32)


@router.get("/", include_in_schema=False)
async def root(request: Request) -> RedirectResponse:
    """Lead to the OpenAPI page."""
    return RedirectResponse(request.url_for("custom_swagger_ui_html").path)


@router.get("/healthz", summary="Is the process alive?", responses=problems.responses(errors.NotReady))
async def healthz(service: ServiceDep) -> Health:
    """Yes while the device answers, however long the queue; no once it failed or a batch is stuck on it."""
    engine = service.engine
    if engine.failure is not None:
        raise errors.NotReady("the model or its device has failed; the process must be replaced")
    if engine.stalled:
        raise errors.NotReady("a batch has been on the device for too long")
    return Health(status="ok")


@router.get("/readyz", summary="May it be sent requests?", responses=problems.responses(errors.NotReady))
async def readyz(service: ServiceDep) -> Health:
    """Yes once the model is loaded and warmed up, until the service drains or fails."""
    if not service.engine.ready:
        raise errors.NotReady("warming up, draining or failed")
    return Health(status="ready")


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"description": "Metrics as text", "content": {"text/plain": {}}}},
)
async def metrics(request: Request, service: ServiceDep) -> Response:
    """In Prometheus' text format, or OpenMetrics where the client asks for it."""
    try:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
    except (TypeError, ValueError):  # a version in Accept that is no version
        encode, content_type = choose_encoder("")
    return Response(encode(service.metrics.registry), headers={"Content-Type": content_type})


@router.get("/info", summary="What is served, on what, within which limits")
async def info(service: ServiceDep) -> Info:
    """Describe the model, the device, the versions, the machine and the limits."""
    model, runtime, settings = service.engine.model, service.engine.runtimes[0], service.settings
    return Info(
        model=model.name,
        source=model.source,
        labels=len(model.labels),
        input_size=model.preprocessing.crop,
        device=service.engine.devices,
        precision=runtime.precision,
        runtime=runtime.name,
        instances=len(service.engine.runtimes),
        version=__version__,
        versions={"torch": torch.__version__, "torchvision": torchvision.__version__},
        hardware=hardware.fingerprint(),
        limits=Limits(
            max_upload_bytes=int(settings.max_upload_mb * 1e6),
            max_pixels=int(settings.max_pixels_mp * 1e6),
            max_files=settings.max_files,
            max_batch=service.engine.max_batch,
            max_queue=settings.max_queue,
            request_timeout_s=settings.request_timeout_s,
            formats=list(images.FORMATS),
        ),
    )


@router.get(
    "/bench",
    name="bench",
    summary="Measure the loaded model on the loaded device",
    responses=problems.responses(errors.InvalidRequest, errors.Busy, errors.NotReady, errors.InferenceFailed),
)
async def bench_(
    request: Request,
    service: ServiceDep,
    batch_sizes: Annotated[
        str | None, Query(description="Comma-separated; by default 1,4,8,16,32 up to the largest batch.")
    ] = None,
    iterations: Annotated[int, Query(ge=1, le=1000, description="Timed batches of each size.")] = 20,
) -> Bench:
    """Run noise on the first device, between the batches of requests. One run at a time."""
    sizes = _batch_sizes(service, batch_sizes)
    images_needed = sum(sizes) * (iterations + bench.WARM_UP)
    if images_needed > service.settings.bench_max_images:
        raise errors.InvalidRequest(
            f"{images_needed} pictures are more than the limit of {service.settings.bench_max_images}: "
            "ask for fewer iterations or smaller batches"
        )
    with service.lend() as engine:
        if not engine.ready:
            raise errors.NotReady("warming up, draining or failed")
        if service.bench_lock.locked():
            raise errors.Busy("a benchmark is running; try again when it has ended")
        async with service.bench_lock:
            rows = await while_connected(request, bench.measure(engine.run_synthetic, sizes, iterations))
    runtime = engine.runtimes[0]
    return Bench(
        model=engine.model.name,
        device=runtime.device,
        precision=runtime.precision,
        runtime=runtime.name,
        hardware=hardware.fingerprint(),
        rows=rows,
    )


@router.post(
    "/reload",
    summary="Load the model anew, and serve it once it is warm",
    responses=problems.responses(errors.Busy, errors.ReloadFailed),
)
async def reload(service: ServiceDep) -> Info:
    """Read model, weights and API keys again from where they were; needs an API key with the part `admin`.

    Every request is answered, by the old model or by the new one. Where the new one cannot be had or fails
    its warm-up, the old one stays, and the answer says why.
    """
    await service.reload()
    return await info(service)


def _batch_sizes(service: Service, text: str | None) -> list[int]:
    largest = service.engine.max_batch
    if text is None:
        return [size for size in _DEFAULT_BATCH_SIZES if size <= largest]
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) <= 5 for part in parts):
        raise errors.InvalidRequest(
            f"batch_sizes must be whole numbers with commas between, got {text[:50]!r}"
        )
    sizes = [int(part) for part in parts]
    if not all(1 <= size <= largest for size in sizes):
        raise errors.InvalidRequest(f"batch sizes must be from 1 to {largest}")
    return sizes
