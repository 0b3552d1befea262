"""Routes that describe and benchmark the loaded models."""

from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Security
from pydantic import Field

from resnet_service import errors
from resnet_service.benchmark.timing import WARMUP_BATCHES
from resnet_service.hints import StrictModel
from resnet_service.schemas import BenchResponse, InfoResponse, LabelsResponse
from resnet_service.server.auth import api_key_auth
from resnet_service.server.exception_handlers import AUTH_ERRORS, openapi_responses
from resnet_service.server.parameters import NO_PARAMETERS
from resnet_service.server.state import AppState
from resnet_service.server.uploads import cancel_on_disconnect

router = APIRouter(tags=["operations"])

_DEFAULT_BATCH_SIZES: Final = (1, 4, 8, 16, 32)
_MAX_DIGITS: Final = 5
"""More than the largest batch has; int() raises ValueError from 4,301 digits on."""


class ModelParameters(StrictModel):
    """The query of /labels, and of all routes that describe one of several models."""

    model: str | None = Field(None, description="Name of the model; by default the first one.")
    version: str | None = Field(None, description="Version of the model; by default that of most requests.")


class BenchParameters(ModelParameters):
    """The query of /bench."""

    batch_sizes: str | None = Field(
        None, description="Comma-separated batch sizes; by default 1,4,8,16,32, up to the maximum."
    )
    iterations: int = Field(20, ge=1, le=1000, description="Number of timed batches of each size.")


@router.get(
    "/info",
    summary="Model, device, versions, machine and limits",
    responses=openapi_responses(errors.InvalidRequestError, *AUTH_ERRORS),
    dependencies=[NO_PARAMETERS],
)
async def info(state: Annotated[AppState, Security(api_key_auth, scopes=["predict"])]) -> InfoResponse:
    """Return the models, the device, the versions, the machine and the request limits."""
    return await state.backend.info()


@router.get(
    "/labels",
    summary="Labels of a model",
    responses=openapi_responses(errors.InvalidRequestError, errors.ModelNotFound, *AUTH_ERRORS),
)
async def labels(
    state: Annotated[AppState, Security(api_key_auth, scopes=["predict"])],
    query: Annotated[ModelParameters, Query()],
) -> LabelsResponse:
    """Return the labels of a model in the order of its classes: `class_id` is the position."""
    model = state.backend.models.find(query.model, query.version).model
    return LabelsResponse(model=model.name, version=model.version, labels=list(model.labels))


@router.get(
    "/bench",
    summary="Benchmark a loaded model",
    responses=openapi_responses(
        *(
            errors.InvalidRequestError,
            errors.ModelNotFound,
            errors.Conflict,
            errors.ServiceUnavailable,
            errors.InferenceError,
        ),
        *AUTH_ERRORS,
    ),
)
async def bench(
    request: Request,
    state: Annotated[AppState, Security(api_key_auth, scopes=["bench"])],
    query: Annotated[BenchParameters, Query()],
) -> BenchResponse:
    """Time batches of random pixels on the first device, between the batches of other requests.

    Only one benchmark can run at a time; another one gets 409.
    """
    served = state.backend.models.find(query.model, query.version)
    sizes = _batch_sizes(query.batch_sizes, served.max_batch)
    image_count = sum(sizes) * (query.iterations + WARMUP_BATCHES)
    if image_count > state.settings.bench_max_images:
        raise errors.InvalidRequestError(
            f"the benchmark would run {image_count} images, the limit is {state.settings.bench_max_images}; "
            "reduce iterations or batch_sizes"
        )
    return await cancel_on_disconnect(request, state.backend.benchmark(served.key, sizes, query.iterations))


def _batch_sizes(text: str | None, max_batch: int) -> list[int]:
    if text is None:
        return [size for size in _DEFAULT_BATCH_SIZES if size <= max_batch]
    items = text.split(",")
    if not all(item.isascii() and item.isdigit() for item in items):
        raise errors.InvalidRequestError(f"batch_sizes must be comma-separated integers, got {text[:50]!r}")
    if not all(len(item) <= _MAX_DIGITS and 1 <= int(item) <= max_batch for item in items):
        raise errors.InvalidRequestError(f"batch_sizes must be from 1 to {max_batch}, got {text[:50]!r}")
    return [int(item) for item in items]
