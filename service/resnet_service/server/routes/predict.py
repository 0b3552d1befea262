"""POST /predict and /predict/batch: classify uploaded images."""

from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from resnet_service import errors
from resnet_service.batching import Lane
from resnet_service.inference.request_timing import RequestTiming
from resnet_service.inference.served_model import ImageReservation, ServedModel
from resnet_service.schemas import BatchPredictItem, BatchPredictResponse, PredictResponse
from resnet_service.server.admission import admit
from resnet_service.server.concurrency import map_concurrently
from resnet_service.server.exception_handlers import AUTH_ERRORS, openapi_responses, to_problem
from resnet_service.server.forms import UploadedFile
from resnet_service.server.parameters import InferenceParameters, PredictQuery, predict_query
from resnet_service.server.prediction_logging import LogPrediction, log_function
from resnet_service.server.routes.images import (
    CLIENT_ERRORS,
    IMAGE,
    SERVICE_ERRORS,
    Authorized,
    image_body,
    json_response,
    read_form,
    read_image,
    stage_timings,
)
from resnet_service.server.uploads import cancel_on_disconnect, request_timing

router = APIRouter(tags=["predict"])

_FIELDS: Final = InferenceParameters.model_json_schema()["properties"]
"""Fields of a form beside the images, with their schemas."""


@router.post(
    "/predict",
    response_model=PredictResponse,
    summary="Classify one image",
    responses=openapi_responses(*CLIENT_ERRORS, *SERVICE_ERRORS, *AUTH_ERRORS),
    openapi_extra={"parameters": predict_query.parameters, "requestBody": image_body(IMAGE, _FIELDS)},
)
async def predict(request: Request, state: Authorized, query: PredictQuery) -> Response:
    """Classify an image, sent as the form field `file` or as the body with an image/* content type.

    Supported formats are JPEG, PNG, WebP, AVIF, GIF (first frame), BMP and TIFF, and HEIC with the extra
    `heif`. EXIF orientation is applied.
    """
    timing = request_timing(request)
    admission = admit(request.scope, state, query, Lane.INTERACTIVE, query.model, query.version)
    async with admission as (served, reservation):
        with state.upload_memory.account(reservation.lane) as account:
            image, body = await read_image(request, state, account, reservation, query, InferenceParameters)
            classes = served.top_k([query.top_k, body.top_k], state.settings.top_k)
            work = served.classify(image.data, classes, reservation, timing)
            result = await cancel_on_disconnect(request, work)
            log = log_function(state.prediction_log, request.scope, served.model)
            if log is not None:
                log(image.data, result)
            return json_response(
                PredictResponse(
                    predictions=list(result.predictions(served.model.labels)),
                    model=served.model.name,
                    version=served.model.version,
                    device=result.device,
                    timing_ms=stage_timings(timing),
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
        *SERVICE_ERRORS,
        *AUTH_ERRORS,
    ),
    openapi_extra={
        "parameters": predict_query.parameters,
        "requestBody": image_body({"type": "array", "items": IMAGE}, _FIELDS),
    },
)
async def predict_batch(request: Request, state: Authorized, query: PredictQuery) -> Response:
    """Classify several images, each sent as a form field `file`.

    The results are in the order of the request; an image that cannot be classified has its own error. If the
    service itself fails for all images, because it is overloaded for example, the response has that status.
    """
    timing = request_timing(request)
    admission = admit(request.scope, state, query, Lane.BULK, query.model, query.version)
    async with admission as (served, reservation):
        with state.upload_memory.account(reservation.lane) as account:
            images, body = await read_form(request, state, account, reservation, query, InferenceParameters)
            classes = served.top_k([query.top_k, body.top_k], state.settings.top_k)
            log = log_function(state.prediction_log, request.scope, served.model)
            work = _classify_all(served, images, classes, reservation, timing, log)
            results = await cancel_on_disconnect(request, work)
            return json_response(
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
    log: LogPrediction | None,
) -> list[BatchPredictItem]:
    """Classify all images of a request, which share its deadline, and `log` them.

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
        if log is not None:
            log(image.data, result)
        return BatchPredictItem(
            filename=image.filename,
            predictions=list(result.predictions(served.model.labels)),
            timing_ms=stage_timings(image_timing),
        )

    uploads = [(image, timing.image()) for image in images]
    items = await map_concurrently(classify, uploads, limits.total)
    if len(failures) == len(images) and all(isinstance(error, SERVICE_ERRORS) for error in failures):
        raise failures[0]
    return items
