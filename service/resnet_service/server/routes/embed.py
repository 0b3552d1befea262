"""POST /embed: the embedding of an uploaded image."""

from typing import Final

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from fastapi.responses import Response

from resnet_service import errors
from resnet_service.batching import Lane
from resnet_service.schemas import EmbedResponse
from resnet_service.server.admission import admit, check_equal
from resnet_service.server.exception_handlers import AUTH_ERRORS, openapi_responses
from resnet_service.server.parameters import EmbeddingParameters, EmbedQuery, embed_query
from resnet_service.server.routes.images import (
    CLIENT_ERRORS,
    IMAGE,
    SERVICE_ERRORS,
    Authorized,
    image_body,
    json_response,
    read_image,
    stage_timings,
)
from resnet_service.server.uploads import cancel_on_disconnect, request_timing

router = APIRouter(tags=["embed"])

_BINARY_TYPE: Final = "application/octet-stream"
_BINARY_BODY: Final = {_BINARY_TYPE: {"schema": {"type": "string", "format": "binary"}}}
_FIELDS: Final = EmbeddingParameters.model_json_schema()["properties"]


@router.post(
    "/embed",
    response_model=EmbedResponse,
    summary="Compute the embedding of one image",
    responses=openapi_responses(*CLIENT_ERRORS, *SERVICE_ERRORS, *AUTH_ERRORS)
    | {200: {"content": _BINARY_BODY}},
    openapi_extra={"parameters": embed_query.parameters, "requestBody": image_body(IMAGE, _FIELDS)},
)
async def embed(request: Request, state: Authorized, query: EmbedQuery) -> Response:
    """Return the embedding of an image: the input of the network's classifier, its last linear layer.

    The embeddings of similar images have similar directions. The image is sent as for /predict. With
    `Accept: application/octet-stream`, the response is the float32 values alone, little-endian.
    """
    timing = request_timing(request)
    admission = admit(request.scope, state, query, Lane.INTERACTIVE, query.model, query.version)
    async with admission as (served, reservation):
        if served.model.embedding_size is None:
            raise errors.InvalidRequestError(
                f"the model {served.model.name!r} has no embedding: its last layer is not a linear one"
            )
        with state.upload_memory.account(reservation.lane) as account:
            image, body = await read_image(request, state, account, reservation, query, EmbeddingParameters)
            if body.normalize is not None:
                check_equal("normalize", query.normalize, body.normalize)
            work = served.classify(image.data, 1, reservation, timing, with_embedding=True)
            result = await cancel_on_disconnect(request, work)
    assert result.embedding is not None
    embedding = _normalize(result.embedding) if query.normalize or body.normalize else result.embedding
    if request.headers.get("accept", "").strip().lower() == _BINARY_TYPE:
        return Response(embedding.astype("<f4", copy=False).tobytes(), media_type=_BINARY_TYPE)
    return json_response(
        EmbedResponse(
            embedding=embedding.tolist(),
            dimensions=len(embedding),
            model=served.model.name,
            version=served.model.version,
            device=result.device,
            timing_ms=stage_timings(timing),
        )
    )


def _normalize(embedding: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the embedding with the L2 norm 1; one of zeros stays as it is."""
    # In fp64, in which the squares of fp32 values do not overflow.
    norm = float(np.linalg.norm(embedding.astype(np.float64)))
    return (embedding / norm).astype(np.float32) if norm else embedding
