"""Convert errors to statuses of gRPC: one table from error class to code, and the metadata for retries."""

import math
from typing import Final

from grpc import StatusCode

from resnet_service import errors
from resnet_service.server.exception_handlers import retry_after

Metadata = tuple[tuple[str, str], ...]

GRPC_CODES: Final[dict[type[errors.ServiceError], StatusCode]] = {
    errors.InvalidRequestError: StatusCode.INVALID_ARGUMENT,
    errors.InvalidImageError: StatusCode.INVALID_ARGUMENT,
    errors.UnsupportedMediaType: StatusCode.INVALID_ARGUMENT,
    errors.PayloadTooLarge: StatusCode.RESOURCE_EXHAUSTED,  # gRPC's own code for messages over its limit
    errors.RequestTimeout: StatusCode.ABORTED,  # by a slow client: no error of the service
    errors.ModelNotFound: StatusCode.NOT_FOUND,
    errors.Unauthorized: StatusCode.UNAUTHENTICATED,
    errors.Forbidden: StatusCode.PERMISSION_DENIED,
    errors.OverloadedError: StatusCode.RESOURCE_EXHAUSTED,
    errors.TooManyRequests: StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceededError: StatusCode.DEADLINE_EXCEEDED,
    errors.ServiceUnavailable: StatusCode.UNAVAILABLE,
    errors.Conflict: StatusCode.ABORTED,
    errors.ReloadError: StatusCode.INTERNAL,
    errors.InferenceError: StatusCode.INTERNAL,
}
"""Error classes that calls can raise, and their codes. A subclass uses its nearest listed base class.

RESOURCE_EXHAUSTED and UNAVAILABLE have `retry-after` if the call may be sent again.
"""

INTERNAL_ERROR: Final = "internal error, see the log"
"""The message of an unexpected error."""


def code_of(error: errors.ServiceError) -> StatusCode:
    """Return the code of an error."""
    listed = (GRPC_CODES[base] for base in type(error).__mro__ if base in GRPC_CODES)
    return next(listed, StatusCode.INTERNAL)


def retry_metadata(error: errors.ServiceError) -> Metadata:
    """Return the trailing metadata for clients that retry: `retry-after` and gRPC's own.

    `retry-after` is in seconds. `grpc-retry-pushback-ms` replaces the delay of the client library's retries;
    -1 stops them.
    """
    delay_s = retry_after(error)
    if delay_s is None:
        return (("grpc-retry-pushback-ms", "-1"),)
    return (
        ("retry-after", str(max(1, math.ceil(delay_s)))),
        ("grpc-retry-pushback-ms", str(math.ceil(1000 * delay_s))),
    )
