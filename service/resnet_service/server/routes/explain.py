"""POST /explain: which places of an image speak for a class."""

import time
from contextlib import ExitStack
from typing import Annotated, Final, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request, Security
from fastapi.responses import Response
from pydantic import Field

from resnet_service import errors
from resnet_service.batching import Lane
from resnet_service.explanations import Explanation, find_class, require_captum
from resnet_service.images.heat_map import DEFAULT_OPACITY, draw_heat_map
from resnet_service.inference.served_model import ServedModel
from resnet_service.schemas import ExplainResponse
from resnet_service.server.admission import admit
from resnet_service.server.auth import api_key_auth
from resnet_service.server.exception_handlers import AUTH_ERRORS, openapi_responses
from resnet_service.server.parameters import AdmissionParameters, ModelParameters, QueryParser
from resnet_service.server.routes.images import CLIENT_ERRORS, IMAGE, SERVICE_ERRORS, image_body
from resnet_service.server.state import AppState
from resnet_service.server.uploads import Upload, cancel_on_disconnect, request_timing

router = APIRouter(tags=["explain"])

Authorized = Annotated[AppState, Security(api_key_auth, scopes=["explain"])]

_PNG: Final = "image/png"
_JSON: Final = "application/json"
_PLAIN: Final = " ,'()"
"""Characters of labels that are not percent-encoded in a header, beside letters and digits."""


class ExplainParameters(ModelParameters, AdmissionParameters):
    """The query of /explain."""

    class_id: int | None = Field(
        None, ge=0, description="Index of the class to explain; by default the most probable one."
    )
    label: str | None = Field(
        None, max_length=500, description="Label of the class to explain, in any case, instead of `class_id`."
    )
    format: Literal["png", "json"] | None = Field(
        None,
        description="The image with the heat over it, or the heat as numbers. The default is png, unless the "
        "header Accept has application/json.",
    )
    opacity: float = Field(
        DEFAULT_OPACITY, ge=0, le=1, description="Opacity of the heat over the image, for png."
    )


explain_query: Final = QueryParser(ExplainParameters)
ExplainQuery = Annotated[ExplainParameters, Depends(explain_query)]

_HEADERS: Final = {
    "X-Class-ID": "Index of the class that was explained",
    "X-Label": "Its label, percent-encoded",
    "X-Probability": "Its probability",
    "X-Model": "The model that answered, percent-encoded",
    "X-Model-Version": "Its version",
}
HEADER_NAMES: Final = tuple(_HEADERS)
"""Headers of an image as the response."""


@router.post(
    "/explain",
    response_model=ExplainResponse,
    summary="Show which places of an image speak for a class",
    responses={
        200: {
            "content": {_PNG: {"schema": {"type": "string", "format": "binary"}}},
            "headers": {
                name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()
            },
        },
        **openapi_responses(
            *CLIENT_ERRORS,
            *SERVICE_ERRORS,
            errors.MissingDependencyError,
            errors.UnsupportedModelError,
            *AUTH_ERRORS,
        ),
    },
    openapi_extra={
        "parameters": explain_query.parameters,
        "requestBody": image_body(IMAGE, {}),
    },
)
async def explain(request: Request, state: Authorized, query: ExplainQuery) -> Response:
    """Explain an image, sent as the form field `file` or as the body with an image/* content type.

    Returns the image that the model saw, with colors from black to white for the places that speak for the
    class (Grad-CAM), as PNG; or the heat as numbers, as JSON. Needs the extra `explain`, and a model that is
    a PyTorch network: neither an ONNX file nor a quantized model. One image is explained at a time.
    """
    require_captum()
    limit = state.explanation_limit
    limit.check()  # before the body is read
    with ExitStack() as admitted:
        # The reservation is for reading and decoding; no batch of the micro-batcher runs for this request.
        async with admit(request.scope, state, query, Lane.BULK, query.model, query.version) as (
            served,
            reservation,
        ):
            with state.upload_memory.account(reservation.lane) as account:
                form = await Upload(request, state.settings, account, reservation).form(())
                if len(form.images) > 1:
                    raise errors.InvalidRequestError(f"expected one image, got {len(form.images)}")
                admitted.enter_context(limit.admit())
                deadline = reservation.deadline
                class_id = await _find_class(served, query, deadline)
                decode = served.decoder.decode(
                    form.images[0].data, served.model.preprocessing, deadline, reservation.lane
                )
                started = time.perf_counter()
                crop = await cancel_on_disconnect(request, decode)
                request_timing(request).record("decode", started, time.perf_counter())
        work = state.backend.explain(served.key, crop, class_id, deadline)
        explanation = await cancel_on_disconnect(request, work)
        if (query.format or _preferred_format(request)) == "json":
            return Response(_to_response(served, explanation).model_dump_json(), media_type=_JSON)
        arguments = (crop, explanation.heat, query.opacity)
        png = await served.decoder.run(deadline, draw_heat_map, *arguments, lane=Lane.BULK)
        return Response(png, media_type=_PNG, headers=_headers(served, explanation))


async def _find_class(served: ServedModel, query: ExplainParameters, deadline: float | None) -> int | None:
    arguments = (served.model.labels, query.class_id, query.label)
    if query.label is None:
        return find_class(*arguments)
    # Of 20,000 labels, the search for the most similar one takes 0.4 s.
    return await served.decoder.run(deadline, find_class, *arguments, lane=Lane.BULK)


def _preferred_format(request: Request) -> str:
    return "json" if _JSON in request.headers.get("accept", "") else "png"


def _to_response(served: ServedModel, explanation: Explanation) -> ExplainResponse:
    return ExplainResponse(
        class_id=explanation.class_id,
        label=explanation.label,
        probability=explanation.probability,
        heat=[[round(float(value), 4) for value in row] for row in explanation.heat],
        input_size=served.model.preprocessing.crop,
        model=served.model.name,
        version=served.model.version,
    )


def _headers(served: ServedModel, explanation: Explanation) -> dict[str, str]:
    values = (
        str(explanation.class_id),
        quote(explanation.label, _PLAIN),
        f"{explanation.probability:.6f}",
        quote(served.model.name, _PLAIN),
        served.model.version,
    )
    return dict(zip(HEADER_NAMES, values, strict=True))
