"""POST /predict and /predict/batch: classify uploaded images."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Request, Security
from fastapi.responses import Response

from resnet_service import errors
from resnet_service.batching import Lane
from resnet_service.inference.request_timing import RequestTiming
from resnet_service.inference.served_model import ImageReservation, ServedModel
from resnet_service.schemas import BatchPredictItem, BatchPredictResponse, PredictResponse, StageTimings
from resnet_service.server.admission import admit, update_admission
from resnet_service.server.auth import api_key_auth
from resnet_service.server.concurrency import map_concurrently
from resnet_service.server.exception_handlers import AUTH_ERRORS, openapi_responses, to_problem
from resnet_service.server.forms import UploadedFile
from resnet_service.server.parameters import InferenceParameters, PredictQuery, parse_fields, predict_query
from resnet_service.server.state import AppState
from resnet_service.server.uploads import Upload, cancel_on_disconnect, request_timing

router = APIRouter(tags=["predict"])

Authorized = Annotated[AppState, Security(api_key_auth, scopes=["predict"])]
"""The application's state, for requests with an API key for predictions."""

_IMAGE: Final = {"type": "string", "format": "binary", "contentMediaType": "image/*"}
_RAW_BODY: Final = {kind: {"schema": _IMAGE} for kind in ("image/*", "application/octet-stream")}
_CLIENT_ERRORS: Final = (
    errors.InvalidRequestError,
    errors.InvalidImageError,
    errors.UnsupportedMediaType,
    errors.PayloadTooLarge,
    errors.RequestTimeout,
    errors.ModelNotFound,
)
_SERVICE_ERRORS: Final = (
    errors.OverloadedError,
    errors.DeadlineExceededError,
    errors.ServiceUnavailable,
    errors.InferenceError,
)

_FIELDS: Final = InferenceParameters.model_json_schema()["properties"]
"""Fields of a form beside the images, with their schemas."""


def _form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"schema": {"type": "object", "required": ["file"], "properties": {"file": schema, **_FIELDS}}}


@router.post(
    "/predict",
    response_model=PredictResponse,
    summary="Classify one image",
    responses=openapi_responses(*_CLIENT_ERRORS, *_SERVICE_ERRORS, *AUTH_ERRORS),
    openapi_extra={
        "parameters": predict_query.parameters,
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": _form(_IMAGE), **_RAW_BODY},
        },
    },
)
async def predict(request: Request, state: Authorized, query: PredictQuery) -> Response:
    """Classify an image, sent as the form field `file` or as the body with an image/* content type.

    Supported formats are JPEG, PNG, WebP, AVIF, GIF (first frame), BMP and TIFF, and HEIC with the extra
    `heif`. EXIF orientation is applied.
    """
    settings, timing = state.settings, request_timing(request)
    admission = admit(request.scope, state, query, Lane.INTERACTIVE, query.model, query.version)
    async with admission as (served, reservation):
        with state.upload_memory.account(reservation.lane) as account:
            form = await Upload(request, settings, account, reservation).form(_FIELDS)
            if len(form.images) > 1:
                raise errors.InvalidRequestError(
                    f"expected one image, got {len(form.images)}; use /predict/batch"
                )
            body = parse_fields(form.texts())
            update_admission(request.scope, state, reservation, query, body)
            classes = served.top_k([query.top_k, body.top_k], settings.top_k)
            work = served.classify(form.images[0].data, classes, reservation, timing)
            result = await cancel_on_disconnect(request, work)
            return _json(
                PredictResponse(
                    predictions=list(result.predictions(served.model.labels)),
                    model=served.model.name,
                    version=served.model.version,
                    device=result.device,
                    timing_ms=_timings(timing),
                )
            )


@router.post(
    "/predict/batch",
    response_model=BatchPredictResponse,
    summary="Classify several images",
    responses=openapi_responses(
        errors.InvalidRequestError,
        errors.UnsupportedMediaType,
        errors.PayloadTooLarge,
        errors.RequestTimeout,
        errors.ModelNotFound,
        *_SERVICE_ERRORS,
        *AUTH_ERRORS,
    ),
    openapi_extra={
        "parameters": predict_query.parameters,
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": _form({"type": "array", "items": _IMAGE}), **_RAW_BODY},
        },
    },
)
async def predict_batch(request: Request, state: Authorized, query: PredictQuery) -> Response:
    """Classify several images, each sent as a form field `file`.

    The results are in the order of the request; an image that cannot be classified has its own error. If the
    service itself fails for all images, because it is overloaded for example, the response has that status.
    """
    settings, timing = state.settings, request_timing(request)
    admission = admit(request.scope, state, query, Lane.BULK, query.model, query.version)
    async with admission as (served, reservation):
        with state.upload_memory.account(reservation.lane) as account:
            form = await Upload(request, settings, account, reservation).form(_FIELDS)
            body = parse_fields(form.texts())
            update_admission(request.scope, state, reservation, query, body)
            classes = served.top_k([query.top_k, body.top_k], settings.top_k)
            work = _classify_all(served, form.images, classes, reservation, timing)
            results = await cancel_on_disconnect(request, work)
            return _json(
                BatchPredictResponse(
                    results=results,
                    model=served.model.name,
                    version=served.model.version,
                    device=served.placement.devices,
                )
            )


async def _classify_all(
    served: ServedModel,
    images: list[UploadedFile],
    top_k: int,
    reservation: ImageReservation,
    timing: RequestTiming,
) -> list[BatchPredictItem]:
    """Classify all images of a request, which share its deadline.

    Raises the first error if all images failed and none of the errors is the image's own.
    """
    limits = served.image_limits()
    failures: list[errors.ServiceError] = []

    async def classify(upload: tuple[UploadedFile, RequestTiming]) -> BatchPredictItem:
        image, image_timing = upload
        try:
            result = await served.classify(image.data, top_k, reservation, image_timing, limits)
        except errors.ServiceError as error:
            failures.append(error)
            return BatchPredictItem(filename=image.filename, error=to_problem(error))
        return BatchPredictItem(
            filename=image.filename,
            predictions=list(result.predictions(served.model.labels)),
            timing_ms=_timings(image_timing),
        )

    uploads = [(image, timing.image()) for image in images]
    items = await map_concurrently(classify, uploads, limits.total)
    if len(failures) == len(images) and all(isinstance(error, _SERVICE_ERRORS) for error in failures):
        raise failures[0]
    return items


def _timings(timing: RequestTiming) -> StageTimings:
    stages = {stage: round(timing.seconds(stage) * 1e3, 3) for stage in ("decode", "queue", "device")}
    return StageTimings(**stages, total=round(timing.total_s * 1e3, 3))


def _json(body: PredictResponse | BatchPredictResponse) -> Response:
    """Serialize the body once; FastAPI would validate a returned model again before it serializes it."""
    return Response(body.model_dump_json(exclude_none=True), media_type="application/json")
