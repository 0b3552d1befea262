"""JSON messages of the protocol, and the names, types and shapes of the model's tensors."""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, FailFast, Field, field_validator, model_validator

from resnet_service.hints import StrictModel, input_error
from resnet_service.inference.served_model import Placement
from resnet_service.models import ModelDescription

IMAGE_INPUT: Final = "image"
PIXELS_INPUT: Final = "pixels"
NORMALIZED_INPUT: Final = "input"

PROBABILITIES_OUTPUT: Final = "probabilities"
CLASS_ID_OUTPUT: Final = "class_id"
LABEL_OUTPUT: Final = "label"
PROBABILITY_OUTPUT: Final = "probability"
EMBEDDING_OUTPUT: Final = "embedding"


_IGNORED_PARAMETERS: Final = frozenset(
    {"content_type", "headers", "sequence_end", "sequence_id", "sequence_start"}
)
"""Parameters that Triton reserves and that have no effect here, and `content_type` of MLServer, which clients
send to any server."""


_MAX_TIMEOUT_US: Final = 2**64 - 1


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, protected_namespaces=())


class _RequestMessage(_Message, StrictModel):
    kind = "field"


class _Parameters(_Message, StrictModel):
    model_config = ConfigDict(extra="ignore")

    @classmethod
    def ignores(cls, name: str) -> bool:
        """Return whether clients of other servers send this parameter, which does not change the result."""
        return name in _IGNORED_PARAMETERS or name.startswith("triton_")

    @model_validator(mode="before")
    @classmethod
    def _reject_shared_memory(cls, value: Any) -> Any:
        if isinstance(value, dict) and any(str(name).startswith("shared_memory") for name in value):
            raise ValueError("shared memory is not supported; send the data with the request")
        return value


class InputParameters(_Parameters):
    """Parameters of an input: the size of its binary data after the JSON; null if its data is in the JSON."""

    binary_data_size: int | None = Field(None, ge=0)
    top_k: int | None = Field(None, ge=1)


class OutputParameters(_Parameters):
    """Parameters of an output: binary or JSON data, and the number of classes to return as text."""

    binary_data: bool | None = None
    classification: int | None = Field(None, ge=1)
    top_k: int | None = Field(None, ge=1)


class RequestParameters(_Parameters):
    """Parameters of a request: the default for `binary_data`, the number of classes, time limit and priority.

    As in Triton, `timeout` is in microseconds; 0 is that of the service, which it cannot exceed. `priority` 0
    is the default and 1 the highest; all others are bulk.
    """

    binary_data_output: bool = False
    timeout: int | None = Field(
        None, ge=0, le=_MAX_TIMEOUT_US, description="Microseconds in which the response is needed; then 504."
    )
    top_k: int | None = Field(None, ge=1)
    priority: int = Field(0, ge=0, lt=2**64)

    @field_validator("timeout", mode="before")
    @classmethod
    def _check_timeout(cls, value: Any) -> Any:
        if value is not None and (type(value) is not int or not 0 <= value <= _MAX_TIMEOUT_US):
            raise input_error("must be a whole number of microseconds, or 0 for the limit of the service")
        return value


class RequestInput(_RequestMessage):
    """An input tensor; `data` is flat or nested, in row-major order."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=1)]], FailFast(), Field(min_length=1, max_length=8)]
    datatype: str
    parameters: InputParameters = InputParameters()
    data: Any = None


class RequestOutput(_RequestMessage):
    """A requested output."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferRequest(_RequestMessage):
    """The JSON of an inference request. Without `outputs`, the response contains all but `embedding`."""

    id: str | None = None
    parameters: RequestParameters = RequestParameters()
    inputs: Annotated[list[RequestInput], FailFast()]
    outputs: Annotated[list[RequestOutput], FailFast()] = []


def infer_request_schema() -> dict[str, Any]:
    """Return the JSON schema of InferRequest with its definitions inlined.

    The operation's `requestBody` in OpenAPI cannot refer to definitions that FastAPI does not collect.
    """
    schema = InferRequest.model_json_schema()
    definitions = schema.pop("$defs")

    def inline(part: Any) -> Any:
        if isinstance(part, list):
            return [inline(item) for item in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return inline(definitions[part["$ref"].rsplit("/", 1)[1]])
        return {key: inline(value) for key, value in part.items()}

    return dict(inline(schema))


class ResponseOutput(_Message):
    """An output tensor: `data` in row-major order, or the size of its binary data after the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: Any = None


class InferResponse(_Message):
    """The JSON of an inference response; binary data follows it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model_name": "cifar10",
                "model_version": "1",
                "outputs": [
                    {"name": "label", "datatype": "BYTES", "shape": [1, 2], "data": ["dog", "cat"]},
                    {"name": "probability", "datatype": "FP32", "shape": [1, 2], "data": [0.527, 0.282]},
                ],
            }
        }
    )

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseOutput]


class ServerMetadata(_Message):
    """The server's name and version, and the protocol extensions that it supports."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(_Message):
    """An input or output of the model; -1 in `shape` means any length."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, bool | str] | None = None


class ModelMetadata(_Message):
    """The model's name, versions, platform (runtime and precision), inputs and outputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerLive(_Message):
    """The liveness of the server."""

    live: bool


class ServerReady(_Message):
    """The readiness of the server."""

    ready: bool


class ModelReady(_Message):
    """The readiness of a model."""

    name: str
    ready: bool


def platform(placement: Placement) -> str:
    """Return the platform of a model: its runtime and precision."""
    return f"{placement.runtime}_{placement.precision}"


def input_tensors(model: ModelDescription) -> Mapping[str, TensorMetadata]:
    """Return the model's inputs by name; a request contains exactly one of them."""
    return _input_tensors(model.preprocessing.crop)


def output_tensors(model: ModelDescription) -> Mapping[str, TensorMetadata]:
    """Return the model's outputs by name: the probabilities of all classes by index, and the top classes.

    A model whose last layer is linear has the embedding as well.
    """
    return _output_tensors(len(model.labels), model.embedding_size)


# Each request needs them, and creating them takes as long as parsing its message.


@lru_cache
def _input_tensors(side: int) -> Mapping[str, TensorMetadata]:
    images = "encoded image files, such as JPEG or PNG; base64 in JSON"
    pixels = "RGB images, resized and cropped"
    normalized = "RGB planes, resized, cropped and normalized; rounded to 8-bit values"
    return _by_name(
        TensorMetadata(name=IMAGE_INPUT, datatype="BYTES", shape=[-1], parameters=_optional(images)),
        TensorMetadata(
            name=PIXELS_INPUT, datatype="UINT8", shape=[-1, side, side, 3], parameters=_optional(pixels)
        ),
        TensorMetadata(
            name=NORMALIZED_INPUT,
            datatype="FP32",
            shape=[-1, 3, side, side],
            parameters=_optional(normalized),
        ),
    )


@lru_cache
def _output_tensors(classes: int, embedding_size: int | None) -> Mapping[str, TensorMetadata]:
    embedding = TensorMetadata(name=EMBEDDING_OUTPUT, datatype="FP32", shape=[-1, embedding_size or 0])
    return _by_name(
        TensorMetadata(name=PROBABILITIES_OUTPUT, datatype="FP32", shape=[-1, classes]),
        TensorMetadata(name=CLASS_ID_OUTPUT, datatype="INT64", shape=[-1, -1]),
        TensorMetadata(name=LABEL_OUTPUT, datatype="BYTES", shape=[-1, -1]),
        TensorMetadata(name=PROBABILITY_OUTPUT, datatype="FP32", shape=[-1, -1]),
        *([] if embedding_size is None else [embedding]),
    )


def _by_name(*tensors: TensorMetadata) -> Mapping[str, TensorMetadata]:
    return MappingProxyType({tensor.name: tensor for tensor in tensors})


def _optional(content: str) -> dict[str, bool | str]:
    return {"optional": True, "content": content}
