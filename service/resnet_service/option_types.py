"""Types of settings: of the options that a model runs with, and of the prediction log.

The options of a model are settings of the service, and a version in a model repository can have its own; the
bounds are the same.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field


def lower_case(value: Any) -> Any:
    """Return words in lower case: they are accepted in any case, as pydantic accepts those for booleans."""
    return value.strip().lower() if isinstance(value, str) else value


DeviceName = Annotated[str, BeforeValidator(lower_case)]
StreamsPerDevice = Annotated[int | None, Field(ge=1, le=64)]
RuntimeName = Annotated[
    Literal["auto", "torch", "openvino", "onnxruntime"],
    BeforeValidator(lower_case),
]
PrecisionName = Annotated[
    Literal["auto", "fp32", "tf32", "bf16", "fp16", "int8"],
    BeforeValidator(lower_case),
]
MaxBatch = Annotated[int | None, Field(ge=1, le=4096)]
MaxWaitMs = Annotated[float, Field(ge=0, le=10_000)]
MaxConcurrency = Annotated[int | None, Field(ge=1)]
MaxQueue = Annotated[int | None, Field(ge=1)]
MaxQueueWaitS = Annotated[float, Field(gt=0)]
ModelThreads = Annotated[int | None, Field(ge=1)]
SHA256Digits = Annotated[str | None, Field(pattern="^[0-9a-fA-F]{8,64}$")]

PredictionLog = Annotated[
    str,
    Field(
        description="Folder or URI, such as s3://bucket/log, of a log of predictions in Parquet files; needs "
        "the extra 'parquet'. By default there is none."
    ),
]
PredictionLogShare = Annotated[
    float, Field(ge=0, le=1, description="Share of the classified images that are logged, 0 to 1.")
]
PredictionLogBelow = Annotated[
    float | None,
    Field(
        gt=0,
        le=1,
        description="Probability of the best class below which all images are logged, whatever the share.",
    ),
]
PredictionLogImages = Annotated[bool, Field(description="Log the uploaded images, too.")]
PredictionLogRate = Annotated[
    float,
    Field(
        gt=0,
        description="Maximum number of images that are logged per second, over all processes; others are "
        "dropped.",
    ),
]
PredictionLogIntervalS = Annotated[
    float,
    Field(
        ge=1,
        le=1200,
        description="Time after which the predictions are written to a file; earlier if they take 16 MB.",
    ),
]
PredictionLogMaxMB = Annotated[
    float,
    Field(
        ge=10,
        description="Maximum size of the prediction log, in MB (10^6 bytes); its oldest files are deleted.",
    ),
]
PredictionLogDays = Annotated[
    float, Field(gt=0, description="Age in days at which files of the prediction log are deleted.")
]
