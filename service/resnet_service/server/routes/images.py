"""What the routes that take images share: their OpenAPI description, the body of a request, and timings."""

from typing import Annotated, Any, Final, TypeVar

from fastapi import Request, Security
from fastapi.responses import Response

from resnet_service import errors
from resnet_service.inference.request_timing import RequestTiming
from resnet_service.inference.served_model import ImageReservation
from resnet_service.schemas import ResponseModel, StageTimings
from resnet_service.server.admission import update_admission
from resnet_service.server.auth import api_key_auth
from resnet_service.server.forms import UploadedFile
from resnet_service.server.parameters import AdmissionParameters, parse_fields
from resnet_service.server.state import AppState
from resnet_service.server.uploads import Upload, UploadAccount

Authorized = Annotated[AppState, Security(api_key_auth, scopes=["predict"])]
"""The application's state, for requests with an API key for predictions."""

Fields = TypeVar("Fields", bound=AdmissionParameters)

IMAGE: Final = {"type": "string", "format": "binary", "contentMediaType": "image/*"}
_RAW_BODY: Final = {kind: {"schema": IMAGE} for kind in ("image/*", "application/octet-stream")}
CLIENT_ERRORS: Final = (
    errors.InvalidRequestError,
    errors.InvalidImageError,
    errors.UnsupportedMediaType,
    errors.PayloadTooLarge,
    errors.RequestTimeout,
    errors.ModelNotFound,
)
"""The errors of requests with one image that are the client's."""
SERVICE_ERRORS: Final = (
    errors.OverloadedError,
    errors.DeadlineExceededError,
    errors.ServiceUnavailable,
    errors.InferenceError,
)


def image_body(file: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI description of a body: a form with `file` and these fields, or an image."""
    schema = {"type": "object", "required": ["file"], "properties": {"file": file, **fields}}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}, **_RAW_BODY}}


async def read_form(
    request: Request,
    state: AppState,
    account: UploadAccount,
    reservation: ImageReservation,
    query: AdmissionParameters,
    fields: type[Fields],
) -> tuple[list[UploadedFile], Fields]:
    """Return the images of a request, and the parameters in its form, which are those of `fields`.

    Priority and timeout in the form apply from now on. Raises what `Upload.form`, `parse_fields` and
    `update_admission` raise.
    """
    form = await Upload(request, state.settings, account, reservation).form(fields.model_fields)
    body = parse_fields(fields, form.texts())
    update_admission(request.scope, state, reservation, query, body)
    return form.images, body


async def read_image(
    request: Request,
    state: AppState,
    account: UploadAccount,
    reservation: ImageReservation,
    query: AdmissionParameters,
    fields: type[Fields],
) -> tuple[UploadedFile, Fields]:
    """Return the only image of a request, as `read_form`; raises InvalidRequestError if there are several."""
    images, body = await read_form(request, state, account, reservation, query, fields)
    if len(images) > 1:
        raise errors.InvalidRequestError(f"expected one image, got {len(images)}; use /predict/batch")
    return images[0], body


def stage_timings(timing: RequestTiming) -> StageTimings:
    """Return the durations of the stages for the body of a response."""
    stages = {stage: round(timing.seconds(stage) * 1e3, 3) for stage in ("decode", "queue", "device")}
    return StageTimings(**stages, total=round(timing.total_s * 1e3, 3))


def json_response(body: ResponseModel) -> Response:
    """Serialize the body once; FastAPI would validate a returned model again before it serializes it."""
    return Response(body.model_dump_json(exclude_none=True), media_type="application/json")
