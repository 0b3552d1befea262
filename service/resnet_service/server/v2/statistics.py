"""Triton's statistics extension: how many requests and batches a model has had, and how long they took."""

from collections.abc import Iterable, Iterator

from fastapi import APIRouter, Request

from resnet_service.inference.statistics import Counter, ModelStatistics
from resnet_service.schemas import ResponseModel
from resnet_service.server.exception_handlers import V2_PREFIX
from resnet_service.server.parameters import NO_PARAMETERS
from resnet_service.server.state import StateDep
from resnet_service.server.v2.dependencies import (
    AUTH,
    INVALID,
    MODEL_PATH,
    NOT_FOUND,
    NOT_READY,
    VERSION,
    VERSION_PATH,
    Authorized,
    ModelDep,
)

router = APIRouter(prefix=V2_PREFIX, tags=["open inference protocol"])


class DurationStatistic(ResponseModel):
    """How often something happened, and how long it took in total, in nanoseconds."""

    count: int
    ns: int


class InferStatistics(ResponseModel):
    """Statistics of requests. `queue` and `compute_*` are those of successful requests."""

    success: DurationStatistic
    fail: DurationStatistic
    queue: DurationStatistic
    compute_input: DurationStatistic
    compute_infer: DurationStatistic
    compute_output: DurationStatistic
    cache_hit: DurationStatistic
    cache_miss: DurationStatistic


class InferBatchStatistics(ResponseModel):
    """Statistics of the batches of one size. Input and output are part of `compute_infer`."""

    batch_size: int
    compute_input: DurationStatistic
    compute_infer: DurationStatistic
    compute_output: DurationStatistic


class VersionStatistics(ResponseModel):
    """Statistics of one version of a model, since the service started."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferStatistics
    batch_stats: list[InferBatchStatistics]


class ModelStatisticsResponse(ResponseModel):
    """Statistics of each version of each model."""

    model_stats: list[VersionStatistics]


def statistics_response(models: Iterable[ModelStatistics]) -> ModelStatisticsResponse:
    """Return the statistics of these models in Triton's schema."""
    return ModelStatisticsResponse(model_stats=[_version_statistics(model) for model in models])


@router.get(
    "/models/stats",
    operation_id="v2_stats",
    summary="Statistics of all models",
    responses=AUTH | INVALID | NOT_READY,
    dependencies=[NO_PARAMETERS],
)
async def statistics(state: Authorized) -> ModelStatisticsResponse:
    """Return the statistics of all models, of /predict as well, since the service started."""
    return statistics_response(await state.backend.statistics())


@router.get(
    f"{VERSION_PATH}/stats",
    operation_id="v2_version_stats",
    summary="Statistics of a model version",
    responses=NOT_FOUND | INVALID | NOT_READY,
    dependencies=[VERSION, NO_PARAMETERS],
)
@router.get(
    f"{MODEL_PATH}/stats",
    operation_id="v2_model_stats",
    summary="Model statistics",
    responses=NOT_FOUND | INVALID | NOT_READY,
    dependencies=[NO_PARAMETERS],
)
async def model_statistics(request: Request, state: StateDep, served: ModelDep) -> ModelStatisticsResponse:
    """Return the statistics of the model, of /predict as well, since the service started."""
    version = request.path_params.get("version")
    return statistics_response(select(await state.backend.statistics(), served.model.name, version))


def select(models: Iterable[ModelStatistics], name: str, version: str | None) -> Iterator[ModelStatistics]:
    """Yield the statistics of all versions of a model, or of one of them."""
    return (model for model in models if model.name == name and version in (None, model.version))


def _version_statistics(model: ModelStatistics) -> VersionStatistics:
    requests = model.requests

    def of_requests(duration: Counter, count: Counter = Counter.SUCCESS) -> DurationStatistic:
        return DurationStatistic(count=requests[count], ns=requests[duration])

    return VersionStatistics(
        name=model.name,
        version=model.version,
        last_inference=model.last_ms,
        inference_count=requests[Counter.INFERENCES],
        execution_count=sum(total.executions for total in model.batches.values()),
        inference_stats=InferStatistics(
            success=of_requests(Counter.SUCCESS_NS),
            fail=of_requests(Counter.FAIL_NS, Counter.FAIL),
            queue=of_requests(Counter.QUEUE_NS),
            compute_input=of_requests(Counter.DECODE_NS),
            compute_infer=of_requests(Counter.DEVICE_NS),
            compute_output=of_requests(Counter.OUTPUT_NS),
            cache_hit=DurationStatistic(count=0, ns=0),
            cache_miss=DurationStatistic(count=0, ns=0),
        ),
        batch_stats=[
            InferBatchStatistics(
                batch_size=size,
                compute_input=DurationStatistic(count=total.executions, ns=0),
                compute_infer=DurationStatistic(count=total.executions, ns=total.ns),
                compute_output=DurationStatistic(count=total.executions, ns=0),
            )
            for size, total in model.batches.items()
        ],
    )
