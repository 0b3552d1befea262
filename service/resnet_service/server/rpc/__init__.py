"""The Open Inference Protocol over gRPC, beside the REST one of `server.v2`.

Needs the extra `grpc`: call `require_grpc` before importing the modules.

`server` owns the port and the drain, `calls` does for each call what the middleware does for a request,
`servicer` has the methods, `health` the standard services, and `codec` converts messages by the rules of
`server.v2.codec`. `protocol` has the definition of the messages, and the modules that `make protocol`
generates from it.
"""

from importlib.util import find_spec
from typing import Final

from resnet_service.errors import MissingDependencyError

MAX_CONNECTIONS: Final = 1_000
"""Of a gRPC server: each carries many calls at a time."""

_PACKAGES: Final = ("google", "google.protobuf", "grpc", "grpc_health", "grpc_reflection")
"""Others may have installed some of them."""


def require_grpc() -> None:
    """Raise MissingDependencyError if a package of the extra is not installed."""
    if any(find_spec(name) is None for name in _PACKAGES):
        raise MissingDependencyError("the gRPC port needs grpcio: make install EXTRAS=grpc")
