"""Admit inference requests with the priority and the timeout that they ask for.

Both are parameters of the query. A form or the JSON of the Open Inference Protocol may have them as well, but
these arrive with the body: they count from then on.
"""

from typing import Final

from fastapi import Request

from resnet_service.batching import Lane
from resnet_service.errors import Forbidden, InvalidRequestError
from resnet_service.inference.served_model import ImageReservation
from resnet_service.server.backend import Admission
from resnet_service.server.parameters import InferenceParameters
from resnet_service.server.state import AppState

_LANES: Final = {lane.name.lower(): lane for lane in Lane}


def admit(request: Request, state: AppState, query: InferenceParameters, default: Lane) -> Admission:
    """Yield the current model and a reservation, as `Backend.admit` does.

    `default` is the priority if the request has none. Raises Forbidden if its API key may not use its
    priority, and what `Backend.admit` raises.
    """
    only_bulk = _is_limited_to_bulk(request)
    lane = _lane(request, query, Lane.BULK if only_bulk else default)
    _record(request, lane)
    return state.backend.admit(_timeout_s(state, query), lane)


def update_admission(
    request: Request,
    state: AppState,
    reservation: ImageReservation,
    query: InferenceParameters,
    body: InferenceParameters,
) -> None:
    """Apply the parameters that were in the body. Raises what `admit` raises.

    Raises InvalidRequestError if query and body differ.
    """
    if body.priority is not None:
        _check_equal("priority", query.priority, body.priority)
        reservation.lane = _lane(request, body, reservation.lane)
        _record(request, reservation.lane)
    if body.timeout_ms is not None:
        _check_equal("timeout_ms", query.timeout_ms, body.timeout_ms)
        reservation.limit(_timeout_s(state, body))


def _timeout_s(state: AppState, parameters: InferenceParameters) -> float:
    limit_s = state.settings.request_timeout_s
    return limit_s if parameters.timeout_ms is None else min(limit_s, parameters.timeout_ms / 1e3)


def _lane(request: Request, parameters: InferenceParameters, default: Lane) -> Lane:
    if parameters.priority is None:
        return default
    lane = _LANES[parameters.priority]
    if lane is not Lane.BULK and _is_limited_to_bulk(request):
        raise Forbidden("this API key may only send requests with priority=bulk")
    return lane


def _is_limited_to_bulk(request: Request) -> bool:
    return bool(request.scope.get("is_bulk_only"))


def _record(request: Request, lane: Lane) -> None:
    """Keep the priority for the access log, which shows it if it is not the usual one."""
    request.scope["priority"] = lane.name.lower() if lane is Lane.BULK else None


def _check_equal(name: str, in_query: object, in_body: object) -> None:
    if in_query is not None and in_query != in_body:
        raise InvalidRequestError(f"{name} is {in_query} in the query and {in_body} in the body")
