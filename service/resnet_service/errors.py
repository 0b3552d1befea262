"""The errors that the service raises deliberately.

ServiceError
├── requests (each has an HTTP status)
│   ├── InvalidRequestError
│   ├── InvalidImageError
│   ├── UnsupportedMediaType
│   ├── PayloadTooLarge
│   ├── RequestTimeout
│   ├── MalformedRequest
│   ├── HeadersTooLarge
│   ├── ModelNotFound
│   ├── Conflict
│   ├── OverloadedError             carries reason and retry_after_s
│   ├── TooManyRequests             carries retry_after_s
│   ├── Unauthorized
│   ├── Forbidden
│   ├── DeadlineExceededError
│   ├── ServiceUnavailable
│   ├── ReloadError
│   └── InferenceError
│       ├── DeviceOutOfMemoryError  a smaller batch may succeed
│       └── DeviceError             only a new process recovers the device
├── start-up and configuration
│   ├── InvalidAPIKeysError
│   ├── BaselineError
│   ├── ModelLoadError
│   ├── UnsupportedModelError
│   ├── DeviceUnavailableError
│   ├── AddressUnavailableError
│   └── MissingDependencyError
└── commands
    ├── InputError
    ├── TrainingError
    ├── BenchmarkError
    ├── StorageError
    └── ClusterError

This module does not depend on HTTP: `resnet_service.server.exception_handlers` maps errors to statuses.
"""

from typing import Any, Literal


class ServiceError(Exception):
    """Base class. The message is written for the user and contains no internals.

    `reason` says why a request was rejected although it may be valid, as the metrics name it; otherwise None.
    """

    reason: str | None = None


class InvalidRequestError(ServiceError):
    """The request does not match the API description."""


class InvalidImageError(ServiceError):
    """The data starts like a supported image format but cannot be decoded."""


class UnsupportedMediaType(ServiceError):
    """The data is not in a supported image format."""


class PayloadTooLarge(ServiceError):
    """The upload has too many bytes, pixels or parts."""


class RequestTimeout(ServiceError):
    """The client took too long to send the request."""


class MalformedRequest(ServiceError):
    """The data is not a valid HTTP request; the connection is closed."""


class HeadersTooLarge(ServiceError):
    """The request headers are too large; the connection is closed."""


class ModelNotFound(ServiceError):
    """The server does not have the model or the version that the request names."""


class Conflict(ServiceError):
    """The same operation is already running, and only one may run at a time."""


class OverloadedError(ServiceError):
    """The request was rejected at once: a queue is full, or the deadline cannot be met.

    `reason` is "queue_full", "deadline" or "memory" (of uploads, or of the decoder). `retry_after_s` is the
    estimated time in seconds until the work that is now queued is done.
    """

    def __init__(
        self, message: str, reason: Literal["queue_full", "deadline", "memory"], retry_after_s: float
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what to pickle: HTTP workers get errors from the main process."""
        return type(self), (str(self), self.reason, self.retry_after_s)


class TooManyRequests(ServiceError):
    """The API key exceeds its rate limit; the next request is allowed after `retry_after_s` seconds."""

    reason = "rate_limit"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what to pickle."""
        return type(self), (str(self), self.retry_after_s)


class Unauthorized(ServiceError):
    """The request has no API key or an unknown one."""


class Forbidden(ServiceError):
    """The API key does not have the scope that this endpoint requires."""


class DeadlineExceededError(ServiceError):
    """The request was accepted but not finished before its deadline."""


class ServiceUnavailable(ServiceError):
    """The service is starting or shutting down, or its device has failed."""

    reason = "not_ready"


class ReloadError(ServiceError):
    """A load or reload failed; the models in use have not changed."""


class InferenceError(ServiceError):
    """The model or the device failed while it processed the request."""


class DeviceOutOfMemoryError(InferenceError):
    """The batch does not fit into the device's memory; a smaller batch may."""


class DeviceError(InferenceError):
    """The device failed in a way that only a restart of the process recovers."""


class InvalidAPIKeysError(ServiceError):
    """The setting with the API keys cannot be parsed, or its file cannot be read."""


class BaselineError(ServiceError):
    """The file with the predictions to compare with cannot be read, or cannot be recorded."""


class ModelLoadError(ServiceError):
    """The model cannot be loaded; the message names alternatives."""


class UnsupportedModelError(ServiceError):
    """The model does not support the operation, for example because it is quantized or lacks a layer."""


class DeviceUnavailableError(ServiceError):
    """The requested device or precision is not available on this machine."""


class AddressUnavailableError(ServiceError):
    """The service cannot listen on its address; the message says what to change."""


class MissingDependencyError(ServiceError):
    """The requested feature needs an optional dependency that is not installed."""


class InputError(ServiceError):
    """An input path, pattern, folder or URL matches no images or cannot be read."""


class TrainingError(ServiceError):
    """The data, options or output folder of a training run cannot be used."""


class BenchmarkError(ServiceError):
    """Nothing to measure or compare, or a results file cannot be read."""


class StorageError(ServiceError):
    """A local folder or an object store cannot be read or written, or contains unexpected data."""


class ClusterError(ServiceError):
    """A Ray cluster does not respond or cannot run the job."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)
