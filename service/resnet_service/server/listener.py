"""The sockets that the service listens on: bound before the model loads, because that can take minutes.

Until the server listens, the operating system rejects connections, so that no request waits for the model.
"""

import errno
import os
import socket
import sys
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from resnet_service.errors import AddressUnavailableError
from resnet_service.settings import Settings

PortOption = Literal["--port", "--management-port", "--grpc-port"]
_Address = tuple[int, tuple[object, ...]]
"""Family and address; of the address, the second element is the port."""

_ALL_ADDRESSES: Final = ("::", "")
_ATTEMPTS: Final = 10
"""To find a port that is free on all addresses."""
_ZERO: Final[dict[PortOption, str]] = {
    "--port": "for a free one",
    "--management-port": "for none",
    "--grpc-port": "for none",
}

__all__ = [
    "Listeners",
    "allow_rebinding",
    "bind_listeners",
    "bind_sockets",
    "share_addresses",
    "sockets_for_workers",
]


class Listeners(NamedTuple):
    """The bound sockets of a service, which do not listen yet."""

    main: list[socket.socket]
    management: list[socket.socket]
    """Empty if the management port is off."""
    grpc: list[socket.socket]
    """Empty if the gRPC port is off. They only reserve the port: see `share_addresses`."""


def bind_listeners(settings: Settings) -> Listeners:
    """Bind all ports. Raises AddressUnavailableError."""
    listeners = Listeners(bind_sockets(settings.host, settings.port), [], [])
    try:
        if settings.management_port:
            listeners.management.extend(
                bind_sockets(settings.host, settings.management_port, "--management-port")
            )
        if settings.grpc_port:
            listeners.grpc.extend(bind_sockets(settings.host, settings.grpc_port, "--grpc-port"))
    except AddressUnavailableError:
        for sockets in listeners:
            _close(sockets)
        raise
    return listeners


def bind_sockets(host: str, port: int, option: PortOption = "--port") -> list[socket.socket]:
    """Return a bound socket for each address of `host`; port 0 selects a port that is free on all of them.

    "::" and "" are all addresses of this machine, IPv4 and IPv6; "0.0.0.0" is IPv4 only. No other process can
    bind the addresses from now on. Call `allow_rebinding` before `listen`. Raises AddressUnavailableError,
    whose message names the command line option for the port, `option`.
    """
    addresses = _resolve(None if host in _ALL_ADDRESSES else host)
    for _ in range(1 if port else _ATTEMPTS):
        try:
            return _bind_all(addresses, port)
        except OSError as error:
            failure = error
            if error.errno != errno.EADDRINUSE:
                break
    raise _describe(failure, host, port, option) from failure


def _resolve(host: str | None) -> list[_Address]:
    """Return the addresses of a host, or those of all interfaces."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:  # UnicodeError: not encodable as a host name
        reason = getattr(error, "strerror", None) or "not a host name"
        raise AddressUnavailableError(
            f"cannot resolve the host {host!r}: {reason}; use an address of this machine, such as "
            "--host 127.0.0.1, or --host :: for all interfaces"
        ) from error
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _bind_all(addresses: Iterable[_Address], port: int) -> list[socket.socket]:
    """Bind the addresses that this machine has to the same port. Raises OSError."""
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    for family, (host, _, *scope) in addresses:
        try:
            sockets.append(_bind(family, (host, port, *scope)))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                _close(sockets)
                raise
            missing = error  # such as ::1 of "localhost" on a machine without IPv6
        else:
            port = sockets[0].getsockname()[1]
    if not sockets and missing is not None:
        raise missing
    return sockets


def sockets_for_workers(sockets: list[socket.socket], workers: int) -> list[list[socket.socket]]:
    """Replace bound sockets by one set for each worker, which do not listen yet; the originals are closed.

    On Linux, each worker gets sockets of its own, among which the system divides the connections evenly. From
    one shared socket, the worker that wakes first would accept all connections that wait. If a worker ends,
    connections wait in its sockets for the worker that replaces it.

    Raises AddressUnavailableError if another process binds an address in the meantime.
    """
    if not sys.platform.startswith("linux"):  # elsewhere, one socket of a group gets all connections
        return [sockets] * workers
    addresses = [(bound.family, bound.getsockname()) for bound in sockets]
    _close(sockets)
    result: list[list[socket.socket]] = []
    for _ in range(workers):
        result.append([])
        for family, address in addresses:
            try:
                result[-1].append(_bind(family, address, share=True))
            except OSError as error:
                for group in result:
                    _close(group)
                raise _describe(error, str(address[0]), address[1], "--port") from error
    return result


def allow_rebinding(sockets: Iterable[socket.socket]) -> None:
    """Allow a process to listen on an address while connections of a previous process are being closed.

    Call this immediately before `listen`: until a socket listens, another process that allows it too can
    bind the same address.
    """
    for bound in sockets:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def share_addresses(sockets: Iterable[socket.socket]) -> list[str]:
    """Allow gRPC servers of this user to listen on the addresses of bound sockets, and return the addresses.

    gRPC takes no bound sockets. On Linux, these stay bound until they are closed and keep the addresses from
    other services: until this call from all processes, and then from those that do not share their ports.
    Elsewhere, they are closed.
    """
    addresses = []
    for bound in sockets:
        host, port = bound.getsockname()[:2]
        addresses.append(f"[{host}]:{port}" if bound.family == socket.AF_INET6 else f"{host}:{port}")
        if sys.platform.startswith("linux"):
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        else:
            bound.close()
    return addresses


def _bind(family: int, address: tuple[object, ...], *, share: bool = False) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if share:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
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


def _describe(error: OSError, host: str, port: int, option: PortOption) -> AddressUnavailableError:
    """Return the error for the user: which address, why, and what to change."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    match error.errno:
        case errno.EADDRINUSE:
            reason = f"the address is already in use; select another {option}, or {option} 0 {_ZERO[option]}"
        case errno.EACCES:
            reason = f"permission denied; ports below 1024 need privileges, select another {option}"
        case errno.EADDRNOTAVAIL:
            reason = "this machine does not have the address; --host :: selects all interfaces"
        case _:
            reason = os.strerror(error.errno) if error.errno else str(error)
    return AddressUnavailableError(f"cannot listen on {address}: {reason}")
