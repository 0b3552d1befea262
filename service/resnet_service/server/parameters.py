"""Parameters of requests, in the query and in forms.

Every route rejects query parameters that it does not have, except the probes and /metrics: a probe must not
fail because of its query, and Prometheus configurations may add parameters.
"""

from collections.abc import Mapping
from typing import Annotated, Final, Generic, TypeVar

from fastapi import Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError

from resnet_service.errors import InvalidRequestError
from resnet_service.hints import StrictModel, summarize_errors
from resnet_service.schemas import Priority


class AdmissionParameters(StrictModel):
    """The parameters of all requests with images."""

    priority: Priority | None = Field(
        None,
        description="Interactive requests are decoded and run before bulk ones. The default is interactive; "
        "for /predict/batch, it is bulk.",
    )
    timeout_ms: int | None = Field(
        None,
        ge=1,
        le=86_400_000,
        json_schema_extra={"example": 10_000},  # the API page fills its form with it, else with the minimum
        description="Time that the request may take, without that to receive its body, in milliseconds; at "
        "most a setting of the service. A request that probably cannot be finished in time gets 429.",
    )


class _TopK(StrictModel):
    top_k: int | None = Field(
        None,
        ge=1,
        description="Number of classes to return, up to the number of the model's classes; the default is a "
        "setting of the service.",
    )


class InferenceParameters(AdmissionParameters, _TopK):
    """The parameters of requests that classify images: the fields of the last base class come first."""


class _Normalize(StrictModel):
    normalize: bool | None = Field(
        None, description="Whether to scale the embedding to the length 1; the default is false."
    )


class EmbeddingParameters(AdmissionParameters, _Normalize):
    """The parameters of requests for embeddings."""


class ModelParameters(StrictModel):
    """The model that a request names in its query: it has to be known before the body is read."""

    model: str | None = Field(
        None, description="Name of the model, of several; by default the first one that the service has."
    )
    version: str | None = Field(
        None, description="Version of the model; by default the latest, or as the model's traffic is split."
    )


class PredictParameters(ModelParameters, InferenceParameters):
    """The query of /predict and /predict/batch."""


class EmbedParameters(ModelParameters, EmbeddingParameters):
    """The query of /embed."""


Parameters = TypeVar("Parameters", bound=StrictModel)


class QueryParser(Generic[Parameters]):
    """Dependency with the query as a model, all of whose fields are optional; most requests have no query.

        query: Annotated[PredictParameters, Depends(QueryParser(PredictParameters))]

    FastAPI's `Query()` validates each field for each request: 35 us with five fields; this takes 8 us if the
    query is empty (Zen 4). It declares no parameters: the route's `openapi_extra` needs `parameters`.
    """

    def __init__(self, model: type[Parameters]) -> None:
        self._model = model
        self._empty = model()
        self.parameters = [
            {
                "name": name,
                "in": "query",
                "required": False,
                "schema": schema,
                "description": schema["description"],
            }
            for name, schema in model.model_json_schema()["properties"].items()
        ]

    async def __call__(self, request: Request) -> Parameters:
        """Return the query; raises FastAPI's error for an invalid one."""
        if not request.scope["query_string"]:
            return self._empty
        try:
            return self._model.model_validate(dict(request.query_params))
        except ValidationError as error:
            details = [{**detail, "loc": ("query", *detail["loc"])} for detail in error.errors()]
            raise RequestValidationError(details) from error


inference_query: Final = QueryParser(InferenceParameters)
InferenceQuery = Annotated[InferenceParameters, Depends(inference_query)]
"""The query of a route that classifies images, whose path names the model."""
predict_query: Final = QueryParser(PredictParameters)
PredictQuery = Annotated[PredictParameters, Depends(predict_query)]
"""The query of a route that classifies images, whose path does not."""
embed_query: Final = QueryParser(EmbedParameters)
EmbedQuery = Annotated[EmbedParameters, Depends(embed_query)]
"""The query of /embed."""


async def _no_parameters(_: Annotated[StrictModel, Query()]) -> None:
    """Raise FastAPI's validation error if the query has a parameter."""


NO_PARAMETERS: Final = Depends(_no_parameters)
"""Dependency of routes without query parameters."""


def parse_fields(model: type[Parameters], fields: Mapping[str, str]) -> Parameters:
    """Validate the fields of a form as the query; an empty field, which browsers send, is not set.

    Raises InvalidRequestError.
    """
    if not fields:
        return model()
    try:
        return model.model_validate({name: value for name, value in fields.items() if value})
    except ValidationError as error:
        raise InvalidRequestError(f"form.{summarize_errors(error.errors())}") from error
