"""The sockets that the service listens on: bound before the model loads, because that can take minutes.

Until the server listens, the operating system rejects connections, so that no request waits for the model.
"""

import errno
import os
import socket
from collections.abc import Iterable

from resnet_service.errors import AddressUnavailableError

__all__ = ["allow_rebinding", "bind_sockets"]


def bind_sockets(host: str, port: int) -> list[socket.socket]:
    """Return a bound socket for each address of `host`; "" is all interfaces, and port 0 selects a free port.

    No other process can bind the addresses from now on. Call `allow_rebinding` before `listen`. Raises
    AddressUnavailableError.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:  # UnicodeError: not encodable as a host name
        reason = getattr(error, "strerror", None) or "not a host name"
        raise AddressUnavailableError(
            f"cannot resolve the host {host!r}: {reason}; use an address of this machine, such as "
            "--host 127.0.0.1, or --host 0.0.0.0 for all interfaces"
        ) from error
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(found):
        try:
            sockets.append(_bind(family, address))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                _close(sockets)
                raise _describe(error, host, port) from error
            missing = error  # such as ::1 of "localhost" on a machine without IPv6
    if not sockets and missing is not None:
        raise _describe(missing, host, port) from missing
    return sockets


def allow_rebinding(sockets: Iterable[socket.socket]) -> None:
    """Allow a process to listen on an address while connections of a previous process are being closed.

    Call this immediately before `listen`: until a socket listens, another process that allows it too can
    bind the same address.
    """
    for bound in sockets:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def _bind(family: int, address: tuple[object, ...]) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a previous process
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has its own socket
        bound.bind(address)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # see `allow_rebinding`
    except OSError:
        bound.close()
        raise
    return bound


def _close(sockets: Iterable[socket.socket]) -> None:
    for bound in sockets:
        bound.close()


def _describe(error: OSError, host: str, port: int) -> AddressUnavailableError:
    """Return the error for the user: which address, why, and what to change."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    match error.errno:
        case errno.EADDRINUSE:
            reason = "the address is already in use; select another --port, or --port 0 for a free one"
        case errno.EACCES:
            reason = "permission denied; ports below 1024 need privileges, select another --port"
        case errno.EADDRNOTAVAIL:
            reason = "this machine does not have the address; --host 0.0.0.0 selects all interfaces"
        case _:
            reason = os.strerror(error.errno) if error.errno else str(error)
    return AddressUnavailableError(f"cannot listen on {address}: {reason}")
