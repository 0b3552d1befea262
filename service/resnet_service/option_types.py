"""Types of the options that a model runs with.

They are settings of the service, and a version in a model repository can have its own; the bounds are the
same.
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
