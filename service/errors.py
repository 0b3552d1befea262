"""Every error the service raises on purpose.

ServiceError
├── InvalidRequest        the request is not what the API describes
├── InvalidImage          the bytes are a known picture format, but broken or empty
├── UnsupportedMedia      the bytes are no picture format the service reads
├── PayloadTooLarge       too many bytes, pixels or parts
│   └── BodyTooLarge          found while the body was read, which was then cut off
├── ReadTimeout           the client took too long to send its request
├── Busy                  the one thing of its kind is already running
├── Overloaded            no room, or the deadline cannot be met; carries retry_after_s
├── RateLimited           the key's requests come too fast; carries retry_after_s
├── Unauthorized          no API key, or an unknown one
├── Forbidden             the API key does not open this part
├── DeadlineExceeded      accepted, but no answer before the deadline
├── NotReady              starting, draining or closed
├── TrainingImpossible    data, options or output that no training run can use
├── BenchmarkImpossible   nothing to measure or compare, or results that cannot be read
├── StorageUnavailable    a folder or an object store that cannot be read from or written to
├── ClusterUnavailable    no Ray cluster answers, or it cannot do what it is asked
├── KeysUnusable          the API keys cannot be read; stops the start
├── ReloadFailed          the new model cannot be served; the old one is
├── ModelUnavailable      the model cannot be had; stops the start
├── DeviceUnavailable     the device or precision asked for is not there; stops the start
├── ExtraMissing          what was asked for needs an extra of the package; stops the start
└── InferenceFailed       the model or the device failed on accepted work
    ├── DeviceOutOfMemory     the batch did not fit; a smaller one may
    └── DeviceFailed          the device will not recover within this process

Nothing here knows HTTP: `service.api.problems` holds the one table from error to status.
"""

from typing import Literal


class ServiceError(Exception):
    """The root of the tree; its message is written for the caller and holds no internals."""


class InvalidRequest(ServiceError):
    """The request is not what the API describes."""


class InvalidImage(ServiceError):
    """The bytes start like a known picture format but cannot be decoded."""


class UnsupportedMedia(ServiceError):
    """The bytes are no picture format the service reads."""


class PayloadTooLarge(ServiceError):
    """The upload has too many bytes, pixels or parts."""


class BodyTooLarge(PayloadTooLarge):
    """The request's body was cut off while it was read."""


class ReadTimeout(ServiceError):
    """The client took too long to send its request."""


class Busy(ServiceError):
    """Something of which one may run at a time is running."""


class Overloaded(ServiceError):
    """Refused at once, because there is no room or the deadline cannot be met.

    `reason` says which: "queue_full", "deadline" or "memory", that of uploads. `retry_after_s` is when the
    work now waiting should be done, in seconds, at the measured rate.
    """

    def __init__(
        self, message: str, reason: Literal["queue_full", "deadline", "memory"], retry_after_s: float
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s


class RateLimited(ServiceError):
    """The key's requests come too fast; the next is welcome in `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unauthorized(ServiceError):
    """The request has no API key, or one that is not known."""


class Forbidden(ServiceError):
    """The request's API key does not open this part of the service."""


class DeadlineExceeded(ServiceError):
    """Accepted, but not answered before its deadline."""


class NotReady(ServiceError):
    """The service is starting, draining or closed."""


class TrainingImpossible(ServiceError):
    """A training run's data, options or output cannot be used."""


class BenchmarkImpossible(ServiceError):
    """There is nothing to measure or to compare, or a file holds no results."""


class StorageUnavailable(ServiceError):
    """A folder, here or in an object store, cannot be read from or written to, or holds something else."""


class ClusterUnavailable(ServiceError):
    """No Ray cluster answers, or it cannot do what it is asked."""


class KeysUnusable(ServiceError):
    """The API keys cannot be read, or are no keys."""


class ReloadFailed(ServiceError):
    """The model was not replaced: the new one cannot be had, or failed its warm-up."""


class ModelUnavailable(ServiceError):
    """The model cannot be had; the message names the ways out."""


class DeviceUnavailable(ServiceError):
    """The device or precision asked for is not to be had on this machine."""


class ExtraMissing(ServiceError):
    """What was asked for needs an extra of the package that is not installed."""


class InferenceFailed(ServiceError):
    """The model or the device failed on accepted work."""


class DeviceOutOfMemory(InferenceFailed):
    """The batch did not fit into the device's memory; a smaller one may."""


class DeviceFailed(InferenceFailed):
    """The device failed in a way that only a new process can mend."""
