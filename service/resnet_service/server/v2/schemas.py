"""The protocol's JSON: what is asked and what is answered."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, protected_namespaces=())


class _Parameters(_Message):
    @model_validator(mode="before")
    @classmethod
    def _reject_shared_memory(cls, given: Any) -> Any:
        if isinstance(given, dict) and any(str(name).startswith("shared_memory") for name in given):
            raise ValueError("shared memory is not supported; send the data with the request")
        return given


class InputParameters(_Parameters):
    """The bytes of this input after the JSON; None where its data are in the JSON."""

    binary_data_size: int | None = Field(None, ge=0)


class OutputParameters(_Parameters):
    """How to answer with one output: as bytes after the JSON, and as the best so many classes in words."""

    binary_data: bool | None = None
    classification: int | None = Field(None, ge=1)


class RequestParameters(_Parameters):
    """Whether outputs are bytes where they do not say, and how many classes the best are."""

    binary_data_output: bool = False
    top_k: int | None = Field(None, ge=1)


class RequestInput(_Message):
    """A tensor that is sent; `data` are flat or nested, row-major."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=1)]], FailFast(), Field(min_length=1, max_length=8)]
    datatype: str
    parameters: InputParameters = InputParameters()
    data: Any = None


class RequestOutput(_Message):
    """An output that is asked for."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferRequest(_Message):
    """The JSON of a request, or its JSON part; all outputs where it asks for none."""

    id: str | None = None
    parameters: RequestParameters = RequestParameters()
    inputs: Annotated[list[RequestInput], FailFast()]
    outputs: Annotated[list[RequestOutput], FailFast()] = []


def request_schema() -> dict[str, Any]:
    """Return the JSON schema of a request without references, for a place where none would lead anywhere."""
    schema = InferRequest.model_json_schema()
    definitions = schema.pop("$defs")

    def inlined(part: Any) -> Any:
        if isinstance(part, list):
            return [inlined(item) for item in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return inlined(definitions[part["$ref"].rsplit("/", 1)[1]])
        return {key: inlined(value) for key, value in part.items()}

    return dict(inlined(schema))


class ResponseOutput(_Message):
    """A tensor of the answer: `data`, row-major, or the number of its bytes after the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: Any = None


class InferResponse(_Message):
    """The answer, or its JSON part."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model_name": "bundled",
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
    """Who answers, and which of the protocol's extensions it knows."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(_Message):
    """An input or output; -1 in its shape stands for any length."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, bool | str] | None = None


class ModelMetadata(_Message):
    """The model, what runs it, and what it takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Live(_Message):
    """The process is alive."""

    live: bool


class Ready(_Message):
    """The service may be sent requests."""

    ready: bool


class ModelReady(_Message):
    """The model may be sent requests."""

    name: str
    ready: bool
