"""POST /predict and /predict/batch: classify uploaded images."""

import time
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.types import Receive, Scope, Send

from resnet_service import errors
from resnet_service.inference.engine import Classification, Engine
from resnet_service.schemas import (
    BatchPredictItem,
    BatchPredictResponse,
    Prediction,
    PredictResponse,
    StageTimings,
)
from resnet_service.server.concurrency import cancel_on_disconnect, map_concurrently
from resnet_service.server.exception_handlers import openapi_responses, to_problem
from resnet_service.server.state import AppState, StateDep, get_state
from resnet_service.server.uploads import UploadedFile, UploadLimits, read_images


class FastPathRoute(APIRoute):
    """A route that is documented by FastAPI, but called without FastAPI's dependency injection.

    Resolving the dependencies and preparing their cleanup took a fifth of the time that a request spends in
    Python.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Override to call the endpoint directly with the request, the state and `top_k`."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)  # responds with 405
            return
        request = Request(scope, receive, send)
        response = await self.endpoint(request, await get_state(request), _parse_top_k(request))
        await response(scope, receive, send)


router = APIRouter(tags=["predict"], route_class=FastPathRoute)

_IMAGE: Final = {"type": "string", "format": "binary", "contentMediaType": "image/*"}
_RAW_BODY: Final = {kind: {"schema": _IMAGE} for kind in ("image/*", "application/octet-stream")}
_CLIENT_ERRORS: Final = (
    errors.InvalidRequestError,
    errors.InvalidImageError,
    errors.UnsupportedMediaType,
    errors.PayloadTooLarge,
    errors.RequestTimeout,
)
_SERVICE_ERRORS: Final = (
    errors.OverloadedError,
    errors.DeadlineExceededError,
    errors.ServiceUnavailable,
    errors.InferenceError,
)

TopKParam = Annotated[
    int | None,
    Query(
        ge=1,
        description="Number of classes to return, up to the number of the model's classes; the default is a "
        "setting of the service.",
    ),
]

_TOP_K_ADAPTER: Final[TypeAdapter[int | None]] = TypeAdapter(TopKParam)


def _form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"schema": {"type": "object", "required": ["file"], "properties": {"file": schema}}}


@router.post(
    "/predict",
    response_model=PredictResponse,
    summary="Classify one image",
    responses=openapi_responses(*_CLIENT_ERRORS, *_SERVICE_ERRORS),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": _form(_IMAGE), **_RAW_BODY},
        }
    },
)
async def predict(request: Request, state: StateDep, top_k: TopKParam = None) -> Response:
    """Classify an image, sent as the form field `file` or as the body with an image/* content type.

    Supported formats are JPEG, PNG, WebP, GIF (first frame), BMP and TIFF. EXIF orientation is applied.
    """
    started = time.perf_counter()
    images = await _read_images(request, state)
    read_s = time.perf_counter() - started
    if len(images) > 1:
        raise errors.InvalidRequestError(f"expected one image, got {len(images)}; use /predict/batch")
    with state.engines.acquire() as engine:
        work = engine.classify(images[0].data, state.top_k(engine, top_k), state.deadline())
        result = await cancel_on_disconnect(request, work)
        total_s = time.perf_counter() - started
        body = PredictResponse(
            predictions=_predictions(engine, result),
            model=engine.model.name,
            device=result.device,
            timing_ms=_timings(result, total_s),
        )
    stages = {
        "read": read_s,
        "decode": result.decode_s,
        "queue": result.queue_s,
        "device": result.device_s,
    }
    request.scope["stages"] = stages
    entries = {**stages, "total": total_s}.items()
    server_timing = ", ".join(f"{stage};dur={seconds * 1e3:.2f}" for stage, seconds in entries)
    return _json(body, {"Server-Timing": server_timing})


@router.post(
    "/predict/batch",
    response_model=BatchPredictResponse,
    summary="Classify several images",
    responses=openapi_responses(
        errors.InvalidRequestError,
        errors.UnsupportedMediaType,
        errors.PayloadTooLarge,
        errors.RequestTimeout,
        *_SERVICE_ERRORS,
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": _form({"type": "array", "items": _IMAGE}), **_RAW_BODY},
        }
    },
)
async def predict_batch(request: Request, state: StateDep, top_k: TopKParam = None) -> Response:
    """Classify several images, each sent as a form field `file`.

    The results are in the order of the request; an image that cannot be classified has its own error. If the
    service itself fails for all images, because it is overloaded for example, the response has that status.
    """
    started = time.perf_counter()
    images = await _read_images(request, state)
    with state.engines.acquire() as engine:
        work = _classify_all(engine, images, state.top_k(engine, top_k), state.deadline(), started)
        results = await cancel_on_disconnect(request, work)
        body = BatchPredictResponse(results=results, model=engine.model.name, device=engine.devices)
    return _json(body)


def _parse_top_k(request: Request) -> int | None:
    value = request.query_params.get("top_k")
    try:
        return None if value is None else _TOP_K_ADAPTER.validate_python(value)
    except ValidationError as error:
        raise errors.InvalidRequestError(f"query.top_k: {error.errors()[0]['msg']}") from error


async def _read_images(request: Request, state: AppState) -> list[UploadedFile]:
    state.engine.check_admission(state.deadline())  # do not read a body that would be rejected afterwards
    with state.metrics.stage_seconds.labels("read").time():
        return await read_images(request, UploadLimits.from_settings(state.settings))


async def _classify_all(
    engine: Engine, images: list[UploadedFile], top_k: int, deadline: float, started: float
) -> list[BatchPredictItem]:
    """Classify all images of a request, which share its deadline.

    Raises the first error if all images failed and none of the errors is the image's own.
    """
    failures: list[errors.ServiceError] = []

    async def classify(image: UploadedFile) -> BatchPredictItem:
        try:
            result = await engine.classify(image.data, top_k, deadline)
        except errors.ServiceError as error:
            failures.append(error)
            return BatchPredictItem(filename=image.filename, error=to_problem(error))
        return BatchPredictItem(
            filename=image.filename,
            predictions=_predictions(engine, result),
            timing_ms=_timings(result, time.perf_counter() - started),
        )

    items = await map_concurrently(classify, images, engine.max_batch)
    if len(failures) == len(images) and all(isinstance(error, _SERVICE_ERRORS) for error in failures):
        raise failures[0]
    return items


def _predictions(engine: Engine, result: Classification) -> list[Prediction]:
    return list(engine.model.rank(result.best.class_ids, result.best.probabilities))


def _timings(result: Classification, total_s: float) -> StageTimings:
    decode, queue, device, total = (
        round(seconds * 1e3, 3) for seconds in (result.decode_s, result.queue_s, result.device_s, total_s)
    )
    return StageTimings(decode=decode, queue=queue, device=device, total=total)


def _json(body: PredictResponse | BatchPredictResponse, headers: dict[str, str] | None = None) -> Response:
    """Serialize the body once; FastAPI would validate a returned model again before it serializes it."""
    return Response(body.model_dump_json(exclude_none=True), headers=headers, media_type="application/json")
