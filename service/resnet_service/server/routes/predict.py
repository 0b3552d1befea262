"""POST /predict and /predict/batch: images in, classes out."""

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
from resnet_service.server.concurrency import map_concurrently
from resnet_service.server.disconnect import cancel_on_disconnect
from resnet_service.server.exception_handlers import openapi_responses, to_problem
from resnet_service.server.state import AppState, StateDep, get_state
from resnet_service.server.uploads import UploadedFile, UploadLimits, read_images


class FastPathRoute(APIRoute):
    """A route that FastAPI documents like any other, and calls without a look at its signature.

    To resolve its dependencies, and to make ready for clearing up after them, took a fifth of the time that a
    request spends in Python.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)  # says 405
            return
        request = Request(scope, receive, send)
        response = await self.endpoint(request, await get_state(request), _top_k(request))
        await response(scope, receive, send)


router = APIRouter(tags=["predict"], route_class=FastPathRoute)

_IMAGE: Final = {"type": "string", "format": "binary", "contentMediaType": "image/*"}
_RAW: Final = {kind: {"schema": _IMAGE} for kind in ("image/*", "application/octet-stream")}
_REJECTED: Final = (
    errors.InvalidRequestError,
    errors.InvalidImageError,
    errors.UnsupportedMediaType,
    errors.PayloadTooLarge,
    errors.RequestTimeout,
)
_FAILED: Final = (
    errors.OverloadedError,
    errors.DeadlineExceededError,
    errors.ServiceUnavailable,
    errors.InferenceError,
)

TopKParam = Annotated[
    int | None,
    Query(
        ge=1,
        description="How many classes, at most as many as the model has; by default the service's choice.",
    ),
]

_TOP_K_ADAPTER: Final[TypeAdapter[int | None]] = TypeAdapter(TopKParam)


def _form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"schema": {"type": "object", "required": ["file"], "properties": {"file": schema}}}


@router.post(
    "/predict",
    response_model=PredictResponse,
    summary="Classify one image",
    responses=openapi_responses(*_REJECTED, *_FAILED),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": _form(_IMAGE), **_RAW},
        }
    },
)
async def predict(request: Request, state: StateDep, top_k: TopKParam = None) -> Response:
    """Send the image as the form field `file`, or as the whole body with an image/* content type.

    JPEG, PNG, WebP, GIF (first frame), BMP and TIFF; upright by EXIF orientation.
    """
    started = time.perf_counter()
    images = await _read(request, state)
    read_s = time.perf_counter() - started
    if len(images) > 1:
        raise errors.InvalidRequestError(f"/predict takes one image, got {len(images)}; use /predict/batch")
    with state.acquire_engine() as engine:
        classes, deadline = state.top_k(engine, top_k), state.deadline()
        result = await cancel_on_disconnect(request, engine.classify(images[0].data, classes, deadline))
        total_s = time.perf_counter() - started
        body = PredictResponse(
            predictions=_predictions(engine, result),
            model=engine.model.name,
            device=result.device,
            timing_ms=_timing(result, total_s),
        )
    stages = {
        "read": read_s,
        "decode": result.decode_s,
        "queue": result.queue_s,
        "device": result.device_s,
    }
    request.scope["stages"] = stages
    shown = {**stages, "total": total_s}.items()
    server_timing = ", ".join(f"{stage};dur={seconds * 1e3:.2f}" for stage, seconds in shown)
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
        *_FAILED,
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": _form({"type": "array", "items": _IMAGE}), **_RAW},
        }
    },
)
async def predict_batch(request: Request, state: StateDep, top_k: TopKParam = None) -> Response:
    """Send each image as a form field `file`; each is answered in order, with its own error if need be.

    Where the service itself could answer none of them, the status says so.
    """
    started = time.perf_counter()
    images = await _read(request, state)
    with state.acquire_engine() as engine:
        items = _items(engine, images, state.top_k(engine, top_k), state.deadline(), started)
        results = await cancel_on_disconnect(request, items)
        body = BatchPredictResponse(results=results, model=engine.model.name, device=engine.devices)
    return _json(body)


def _top_k(request: Request) -> int | None:
    given = request.query_params.get("top_k")
    try:
        return None if given is None else _TOP_K_ADAPTER.validate_python(given)
    except ValidationError as error:
        raise errors.InvalidRequestError(f"query.top_k: {error.errors()[0]['msg']}") from error


async def _read(request: Request, state: AppState) -> list[UploadedFile]:
    state.engine.check_admission(state.deadline())  # what cannot be taken is not read either
    with state.metrics.stage_seconds.labels("read").time():
        return await read_images(request, UploadLimits.from_settings(state.settings))


async def _items(
    engine: Engine, images: list[UploadedFile], top_k: int, deadline: float, started: float
) -> list[BatchPredictItem]:
    """Classify each; `deadline` is the request's: the last images have no more time than the first."""

    async def item(image: UploadedFile) -> BatchPredictItem:
        try:
            result = await engine.classify(image.data, top_k, deadline)
        except errors.ServiceError as error:
            rejections.append(error)
            return BatchPredictItem(filename=image.filename, error=to_problem(error))
        return BatchPredictItem(
            filename=image.filename,
            predictions=_predictions(engine, result),
            timing_ms=_timing(result, time.perf_counter() - started),
        )

    rejections: list[errors.ServiceError] = []
    items = await map_concurrently(engine, item, images)
    if len(rejections) == len(images) and all(isinstance(error, _FAILED) for error in rejections):
        raise rejections[0]  # the service failed, not the images: say so with the status
    return items


def _predictions(engine: Engine, result: Classification) -> list[Prediction]:
    return [
        Prediction(class_id=ranked.class_id, label=ranked.label, probability=ranked.probability)
        for ranked in engine.model.rank(result.best.class_ids, result.best.probabilities)
    ]


def _timing(result: Classification, total_s: float) -> StageTimings:
    decode, queue, device, total = (
        round(seconds * 1e3, 3) for seconds in (result.decode_s, result.queue_s, result.device_s, total_s)
    )
    return StageTimings(decode=decode, queue=queue, device=device, total=total)


def _json(body: PredictResponse | BatchPredictResponse, headers: dict[str, str] | None = None) -> Response:
    """Serialize once; returned as a model, FastAPI would validate it again first."""
    return Response(body.model_dump_json(exclude_none=True), headers=headers, media_type="application/json")
