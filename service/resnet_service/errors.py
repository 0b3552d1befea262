"""Every error the service raises on purpose.

ServiceError
├── InvalidRequestError        the request is not what the API describes
├── InvalidImageError          the bytes are a known image format, but broken or empty
├── UnsupportedMediaType      the bytes are no image format the service reads
├── PayloadTooLarge       too many bytes, pixels or parts
│   └── RequestBodyTooLarge          found while the body was read, which was then cut off
├── RequestTimeout           the client took too long to send its request
├── Conflict                  the one thing of its kind is already running
├── OverloadedError            no room, or the deadline cannot be met; carries retry_after_s
├── TooManyRequests           the key's requests come too fast; carries retry_after_s
├── Unauthorized          no API key, or an unknown one
├── Forbidden             the API key does not open this part
├── DeadlineExceededError      accepted, but no answer before the deadline
├── ServiceUnavailable              starting, draining or closed
├── TrainingError    data, options or output that no training run can use
├── BenchmarkError   nothing to measure or compare, or results that cannot be read
├── StorageError    a folder or an object store that cannot be read from or written to
├── ClusterError    no Ray cluster answers, or it cannot do what it is asked
├── InvalidAPIKeysError          the API keys cannot be read; stops the start
├── ReloadError          the new model cannot be served; the old one is
├── ModelLoadError      the model cannot be had; stops the start
├── DeviceUnavailableError     the device or precision asked for is not there; stops the start
├── MissingDependencyError          what was asked for needs an extra of the package; stops the start
└── InferenceError       the model or the device failed on accepted work
    ├── DeviceOutOfMemoryError     the batch did not fit; a smaller one may
    └── DeviceError          the device will not recover within this process

Nothing here knows HTTP: `resnet_service.server.exception_handlers` holds the one table from error to status.
"""

from typing import Literal


class ServiceError(Exception):
    """The root of the tree; its message is written for the caller and holds no internals."""


class InvalidRequestError(ServiceError):
    """The request is not what the API describes."""


class InvalidImageError(ServiceError):
    """The bytes start like a known image format but cannot be decoded."""


class UnsupportedMediaType(ServiceError):
    """The bytes are no image format the service reads."""


class PayloadTooLarge(ServiceError):
    """The upload has too many bytes, pixels or parts."""


class RequestBodyTooLarge(PayloadTooLarge):
    """The request's body was cut off while it was read."""


class RequestTimeout(ServiceError):
    """The client took too long to send its request."""


class Conflict(ServiceError):
    """Something of which one may run at a time is running."""


class OverloadedError(ServiceError):
    """APIError at once, because there is no room or the deadline cannot be met.

    `reason` says which: "queue_full", "deadline" or "memory", that of uploads. `retry_after_s` is when the
    work now waiting should be done, in seconds, at the measured rate.
    """

    def __init__(
        self, message: str, reason: Literal["queue_full", "deadline", "memory"], retry_after_s: float
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s


class TooManyRequests(ServiceError):
    """The key's requests come too fast; the next is welcome in `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unauthorized(ServiceError):
    """The request has no API key, or one that is not known."""


class Forbidden(ServiceError):
    """The request's API key does not open this part of the service."""


class DeadlineExceededError(ServiceError):
    """Accepted, but not answered before its deadline."""


class ServiceUnavailable(ServiceError):
    """The service is starting, draining or closed."""


class TrainingError(ServiceError):
    """A training run's data, options or output cannot be used."""


class BenchmarkError(ServiceError):
    """There is nothing to measure or to compare, or a file holds no results."""


class StorageError(ServiceError):
    """A folder, here or in an object store, cannot be read from or written to, or holds something else."""


class ClusterError(ServiceError):
    """No Ray cluster answers, or it cannot do what it is asked."""


class InvalidAPIKeysError(ServiceError):
    """The API keys cannot be read, or are no keys."""


class ReloadError(ServiceError):
    """The model was not replaced: the new one cannot be had, or failed its warm-up."""


class ModelLoadError(ServiceError):
    """The model cannot be had; the message names the ways out."""


class DeviceUnavailableError(ServiceError):
    """The device or precision asked for is not to be had on this machine."""


class MissingDependencyError(ServiceError):
    """What was asked for needs an extra of the package that is not installed."""


class InferenceError(ServiceError):
    """The model or the device failed on accepted work."""


class DeviceOutOfMemoryError(InferenceError):
    """The batch did not fit into the device's memory; a smaller one may."""


class DeviceError(InferenceError):
    """The device failed in a way that only a new process can mend."""
