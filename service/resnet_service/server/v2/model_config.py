"""Triton's model configuration extension: how the service runs a model, in the terms of `ModelConfig`.

`perf_analyzer` reads the largest batch and the inputs from it. The schema is that of Triton's
`model_config.proto` as JSON; fields that would have no meaning here are left out.
"""

from typing import Final, Literal

from fastapi import APIRouter

from resnet_service.inference.served_model import Placement, ServedModel
from resnet_service.schemas import ResponseModel
from resnet_service.server.exception_handlers import V2_PREFIX
from resnet_service.server.parameters import NO_PARAMETERS
from resnet_service.server.state import StateDep
from resnet_service.server.v2 import schemas
from resnet_service.server.v2.dependencies import (
    INVALID,
    MODEL_PATH,
    NOT_FOUND,
    VERSION,
    VERSION_PATH,
    ModelDep,
)
from resnet_service.settings import Settings

router = APIRouter(prefix=V2_PREFIX, tags=["open inference protocol"])

_FORMATS: Final[dict[str, Literal["FORMAT_NHWC", "FORMAT_NCHW"]]] = {
    schemas.PIXELS_INPUT: "FORMAT_NHWC",
    schemas.NORMALIZED_INPUT: "FORMAT_NCHW",
}


class TensorConfig(ResponseModel):
    """An output of the model; `dims` has no batch dimension, and -1 means any length."""

    name: str
    data_type: str
    dims: list[int]


class InputConfig(TensorConfig):
    """An input of the model. All are optional, because a request has exactly one of them."""

    format: Literal["FORMAT_NONE", "FORMAT_NHWC", "FORMAT_NCHW"]
    optional: bool


class InstanceGroup(ResponseModel):
    """Batches that run at the same time: on the CPU, or on each of the GPUs."""

    name: str
    kind: Literal["KIND_CPU", "KIND_GPU", "KIND_MODEL"]
    count: int
    gpus: list[int]


class DynamicBatching(ResponseModel):
    """The batch size that is most efficient, and how long a batch waits for more images."""

    preferred_batch_size: list[int]
    max_queue_delay_microseconds: int


class LatestVersions(ResponseModel):
    """How many of the latest versions are served."""

    num_versions: int


class VersionPolicy(ResponseModel):
    """Which versions of the model are served."""

    latest: LatestVersions


class Parameter(ResponseModel):
    """The value of a parameter."""

    string_value: str


class ModelConfig(ResponseModel):
    """How the service runs the model; the fields are those of Triton's model configuration.

    `max_batch_size` is the number of images that a request may have and that fit into one batch. `parameters`
    has the precision, the device, the largest batch and the number of images that a request may have.
    """

    name: str
    platform: str
    backend: str
    version_policy: VersionPolicy
    max_batch_size: int
    input: list[InputConfig]
    output: list[TensorConfig]
    instance_group: list[InstanceGroup]
    dynamic_batching: DynamicBatching
    parameters: dict[str, Parameter]


def model_config(served: ServedModel, versions: int, settings: Settings) -> ModelConfig:
    """Return the configuration of a model, of which `versions` are served, with these settings."""
    model, placement = served.model, served.placement
    limit = settings.max_images_per_request
    max_batch_size = min(served.max_batch, limit)
    parameters = {
        "precision": placement.precision,
        "device": placement.devices,
        "largest_batch": str(served.largest_batch),
        "max_images_per_request": str(limit),
    }
    return ModelConfig(
        name=model.name,
        platform=schemas.platform(placement),
        backend=placement.runtime,
        version_policy=VersionPolicy(latest=LatestVersions(num_versions=versions)),
        max_batch_size=max_batch_size,
        input=[
            InputConfig(
                name=tensor.name,
                data_type=_data_type(tensor),
                dims=_dims(tensor),
                format=_FORMATS.get(tensor.name, "FORMAT_NONE"),
                optional=True,
            )
            for tensor in schemas.input_tensors(model).values()
        ],
        output=[
            TensorConfig(name=tensor.name, data_type=_data_type(tensor), dims=_dims(tensor))
            for tensor in schemas.output_tensors(model).values()
        ],
        instance_group=[_instance_group(model.name, placement)],
        dynamic_batching=DynamicBatching(
            preferred_batch_size=[min(served.largest_batch, max_batch_size)],
            max_queue_delay_microseconds=round(settings.max_wait_ms * 1000),
        ),
        parameters={name: Parameter(string_value=value) for name, value in parameters.items()},
    )


@router.get(
    f"{VERSION_PATH}/config",
    operation_id="v2_version_config",
    summary="Configuration of a model version",
    responses=NOT_FOUND | INVALID,
    dependencies=[VERSION, NO_PARAMETERS],
)
@router.get(
    f"{MODEL_PATH}/config",
    operation_id="v2_model_config",
    summary="Model configuration",
    responses=NOT_FOUND | INVALID,
    dependencies=[NO_PARAMETERS],
)
async def config(state: StateDep, served: ModelDep) -> ModelConfig:
    """Return how the service runs the model, in the schema of Triton's model configuration."""
    versions = state.backend.models.versions(served.model.name)
    return model_config(served, len(versions), state.settings)


def _data_type(tensor: schemas.TensorMetadata) -> str:
    return "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"


def _dims(tensor: schemas.TensorMetadata) -> list[int]:
    """Return the shape without the batch dimension; that of one string is [1], since Triton allows no []."""
    return tensor.shape[1:] or [1]


def _instance_group(name: str, placement: Placement) -> InstanceGroup:
    devices = [device.partition(":") for device in placement.devices.split(",")]
    kinds: dict[str, Literal["KIND_CPU", "KIND_GPU"]] = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}
    kind = kinds.get(devices[0][0], "KIND_MODEL")
    return InstanceGroup(
        name=name,
        kind=kind,
        count=placement.streams // len(devices),
        gpus=[int(index or 0) for _, _, index in devices] if kind == "KIND_GPU" else [],
    )
