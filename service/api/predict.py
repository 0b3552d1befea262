"""POST /predict and /predict/batch: pictures in, classes out."""

import time
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.types import Receive, Scope, Send

from service import errors
from service.api import problems
from service.api.disconnect import while_connected
from service.api.service import Service, ServiceDep, service_of
from service.api.turns import in_turns
from service.api.uploads import Limits, Part, read_pictures
from service.engine import Classification, Engine
from service.schemas import BatchItem, Predicted, PredictedBatch, Prediction, Timing


class _Direct(APIRoute):
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
        response = await self.endpoint(request, await service_of(request), _top_k(request))
        await response(scope, receive, send)


router = APIRouter(tags=["predict"], route_class=_Direct)

_PICTURE: Final = {"type": "string", "format": "binary", "contentMediaType": "image/*"}
_RAW: Final = {kind: {"schema": _PICTURE} for kind in ("image/*", "application/octet-stream")}
_REFUSED: Final = (
    errors.InvalidRequest,
    errors.InvalidImage,
    errors.UnsupportedMedia,
    errors.PayloadTooLarge,
    errors.ReadTimeout,
)
_FAILED: Final = (errors.Overloaded, errors.DeadlineExceeded, errors.NotReady, errors.InferenceFailed)

TopK = Annotated[
    int | None,
    Query(
        ge=1,
        description="How many classes, at most as many as the model has; by default the service's choice.",
    ),
]

_TOP_K: Final[TypeAdapter[int | None]] = TypeAdapter(TopK)


def _form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"schema": {"type": "object", "required": ["file"], "properties": {"file": schema}}}


@router.post(
    "/predict",
    response_model=Predicted,
    summary="Classify one picture",
    responses=problems.responses(*_REFUSED, *_FAILED),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": _form(_PICTURE), **_RAW},
        }
    },
)
async def predict(request: Request, service: ServiceDep, top_k: TopK = None) -> Response:
    """Send the picture as the form field `file`, or as the whole body with an image/* content type.

    JPEG, PNG, WebP, GIF (first frame), BMP and TIFF; upright by EXIF orientation.
    """
    started = time.perf_counter()
    pictures = await _read(request, service)
    read_s = time.perf_counter() - started
    if len(pictures) > 1:
        raise errors.InvalidRequest(f"/predict takes one picture, got {len(pictures)}; use /predict/batch")
    with service.lend() as engine:
        classes, deadline = service.top_k(engine, top_k), service.deadline()
        result = await while_connected(request, engine.classify(pictures[0].data, classes, deadline))
        total_s = time.perf_counter() - started
        body = Predicted(
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
    response_model=PredictedBatch,
    summary="Classify several pictures",
    responses=problems.responses(
        errors.InvalidRequest, errors.UnsupportedMedia, errors.PayloadTooLarge, errors.ReadTimeout, *_FAILED
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": _form({"type": "array", "items": _PICTURE}), **_RAW},
        }
    },
)
async def predict_batch(request: Request, service: ServiceDep, top_k: TopK = None) -> Response:
    """Send each picture as a form field `file`; each is answered in order, with its own error if need be.

    Where the service itself could answer none of them, the status says so.
    """
    started = time.perf_counter()
    pictures = await _read(request, service)
    with service.lend() as engine:
        items = _items(engine, pictures, service.top_k(engine, top_k), service.deadline(), started)
        results = await while_connected(request, items)
        body = PredictedBatch(results=results, model=engine.model.name, device=engine.devices)
    return _json(body)


def _top_k(request: Request) -> int | None:
    given = request.query_params.get("top_k")
    try:
        return None if given is None else _TOP_K.validate_python(given)
    except ValidationError as error:
        raise errors.InvalidRequest(f"query.top_k: {error.errors()[0]['msg']}") from error


async def _read(request: Request, service: Service) -> list[Part]:
    service.engine.admit(service.deadline())  # what cannot be taken is not read either
    with service.metrics.stage_seconds.labels("read").time():
        return await read_pictures(request, Limits.of(service.settings))


async def _items(
    engine: Engine, pictures: list[Part], top_k: int, deadline: float, started: float
) -> list[BatchItem]:
    """Classify each; `deadline` is the request's: the last pictures have no more time than the first."""

    async def item(picture: Part) -> BatchItem:
        try:
            result = await engine.classify(picture.data, top_k, deadline)
        except errors.ServiceError as error:
            refusals.append(error)
            return BatchItem(filename=picture.filename, error=problems.problem_of(error))
        return BatchItem(
            filename=picture.filename,
            predictions=_predictions(engine, result),
            timing_ms=_timing(result, time.perf_counter() - started),
        )

    refusals: list[errors.ServiceError] = []
    items = await in_turns(engine, item, pictures)
    if len(refusals) == len(pictures) and all(isinstance(error, _FAILED) for error in refusals):
        raise refusals[0]  # the service failed, not the pictures: say so with the status
    return items


def _predictions(engine: Engine, result: Classification) -> list[Prediction]:
    return [
        Prediction(class_id=ranked.class_id, label=ranked.label, probability=ranked.probability)
        for ranked in engine.model.rank(result.best.class_ids, result.best.probabilities)
    ]


def _timing(result: Classification, total_s: float) -> Timing:
    decode, queue, device, total = (
        round(seconds * 1e3, 3) for seconds in (result.decode_s, result.queue_s, result.device_s, total_s)
    )
    return Timing(decode=decode, queue=queue, device=device, total=total)


def _json(body: Predicted | PredictedBatch, headers: dict[str, str] | None = None) -> Response:
    """Serialise once; returned as a model, FastAPI would validate it again first."""
    return Response(body.model_dump_json(exclude_none=True), headers=headers, media_type="application/json")
