"""Admit inference requests to the model, with the priority and the timeout that they ask for.

The last two are parameters of the query. A form or the JSON of the Open Inference Protocol may have them as
well, but these arrive with the body: they count from then on.

`scope` is what the layers of the server know of a request, of ASGI or of a call of gRPC: "is_bulk_only" is
that of its API key; "model" and "priority" are stored here for metrics, spans and the access log.
"""

from collections.abc import MutableMapping
from typing import Any, Final

from resnet_service.batching import Lane
from resnet_service.errors import Forbidden, InvalidRequestError
from resnet_service.inference.served_model import ImageReservation
from resnet_service.server.backend import Admission
from resnet_service.server.parameters import AdmissionParameters
from resnet_service.server.state import AppState

RequestScope = MutableMapping[str, Any]

_LANES: Final = {lane.name.lower(): lane for lane in Lane}


def admit(
    scope: RequestScope,
    state: AppState,
    query: AdmissionParameters,
    default: Lane,
    model: str | None = None,
    version: str | None = None,
) -> Admission:
    """Yield the model that answers and a reservation, as `Backend.admit` does.

    `default` is the priority if the request has none; `model` and `version` are those that it names. Raises
    ModelNotFound, Forbidden if its API key may not use its priority, and what `Backend.admit` raises.
    """
    key = scope["model"] = state.backend.models.choose(model, version).key
    lane = request_lane(scope, query, default)
    _record(scope, lane)
    return state.backend.admit(key, _timeout_s(state, query), lane)


def request_lane(scope: RequestScope, parameters: AdmissionParameters, default: Lane) -> Lane:
    """Return the priority of a request. Raises Forbidden."""
    return _lane(scope, parameters, Lane.BULK if _is_limited_to_bulk(scope) else default)


def update_admission(
    scope: RequestScope,
    state: AppState,
    reservation: ImageReservation,
    query: AdmissionParameters,
    body: AdmissionParameters,
) -> None:
    """Apply the parameters that were in the body. Raises what `admit` raises.

    Raises InvalidRequestError if query and body differ.
    """
    if body.priority is not None:
        check_equal("priority", query.priority, body.priority)
        reservation.lane = _lane(scope, body, reservation.lane)
        _record(scope, reservation.lane)
    if body.timeout_ms is not None:
        check_equal("timeout_ms", query.timeout_ms, body.timeout_ms)
        reservation.limit(_timeout_s(state, body))


def _timeout_s(state: AppState, parameters: AdmissionParameters) -> float:
    limit_s = state.settings.request_timeout_s
    return limit_s if parameters.timeout_ms is None else min(limit_s, parameters.timeout_ms / 1e3)


def _lane(scope: RequestScope, parameters: AdmissionParameters, default: Lane) -> Lane:
    if parameters.priority is None:
        return default
    lane = _LANES[parameters.priority]
    if lane is not Lane.BULK and _is_limited_to_bulk(scope):
        raise Forbidden("this API key may only send requests with priority=bulk")
    return lane


def _is_limited_to_bulk(scope: RequestScope) -> bool:
    return bool(scope.get("is_bulk_only"))


def _record(scope: RequestScope, lane: Lane) -> None:
    """Keep the priority for the access log, which shows it if it is not the usual one."""
    scope["priority"] = lane.name.lower() if lane is Lane.BULK else None


def check_equal(name: str, in_query: object, in_body: object) -> None:
    """Raise InvalidRequestError if a parameter is in the query with another value than in the body."""
    if in_query is not None and in_query != in_body:
        raise InvalidRequestError(f"{name} is {in_query} in the query and {in_body} in the body")
