"""The labels of the metrics and their values.

No value is one that a client chooses: each new value creates a series, which takes memory and time of every
scrape until the process ends.
"""

from typing import Final, Literal, get_args

MODEL: Final = ("model", "version")
"""The labels of what belongs to one version of a model."""
IMAGE_OUTCOMES: Final = ("ok", "invalid", "rejected", "failed", "expired", "cancelled")
STAGES: Final = ("wait", "read", "decode", "queue", "device")
REJECTION_REASONS: Final = ("queue_full", "deadline", "memory", "rate_limit", "not_ready")
SHADOW_OUTCOMES: Final = ("agree", "disagree", "failed", "dropped")
OTHER_CLASS: Final = "_other"
"""The value of the label `class` for all classes without a series of their own."""
DECODE_POOLS: Final = ("threads", "sandbox")
RESTART_REASONS: Final = ("crashed", "killed", "timeout")
LogDropReason = Literal["rate", "queue_full", "write_failed"]
LOG_DROP_REASONS: Final = get_args(LogDropReason)
LogDeletionReason = Literal["age", "size"]
LOG_DELETION_REASONS: Final = get_args(LogDeletionReason)
ConnectionReason = Literal[
    "limit", "header_timeout", "header_too_large", "malformed", "pipelined", "write_timeout"
]
CONNECTION_REASONS: Final = get_args(ConnectionReason)

LABELS: Final = {
    "route": "The path of a route, such as `/predict` or `/v2/models/{name}/infer`, with the names of its "
    "parameters; `unmatched` if no route has the path and the method of the request.",
    "method": "`GET` (also for HEAD), `POST`, `OPTIONS`, or `_OTHER`; of gRPC, such as `ModelInfer`.",
    "code": "The status code of a gRPC call, such as `OK` or `INVALID_ARGUMENT`; `CANCELLED` by its client.",
    "status": "The status of the response, or 499: the client disconnected.",
    "stage": ", ".join(f"`{stage}`" for stage in STAGES) + ".",
    "pool": f"The decoders of JPEG and of other formats: {', '.join(f'`{pool}`' for pool in DECODE_POOLS)}.",
    "outcome": "As listed with the metric.",
    "priority": "`interactive` or `bulk`.",
    "reason": "As listed with the metric.",
    "model": "The name of a model in use; absent for requests that end before their model is known.",
    "version": "The version of that model.",
    "class": "A class of the model, with its index if another one has the same label; `_other` for the "
    "classes without a series of their own.",
    "format": "The format of an image by its first bytes, such as `jpeg` or `png`; `other` for data of none.",
    "device": "A device in use, such as `cpu` or `cuda:0`.",
    "precision": "That of the model in use.",
    "runtime": "That of the model in use.",
    "service_version": "That of the service.",
}
"""The labels of all metrics, and what their values mean."""
