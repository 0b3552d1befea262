"""The sockets that the service listens on: reserved before the model loads, with helpful errors."""

import socket
from contextlib import ExitStack, closing

import pytest

from resnet_service.errors import AddressUnavailableError
from resnet_service.server.listener import allow_rebinding, bind_sockets
from tests.support.server import has_ipv6


def test_bound_address_rejects_connections_until_the_server_listens() -> None:
    """A client that connects too early gets an error at once, instead of waiting for the model."""
    [bound] = bind_sockets("127.0.0.1", 0)
    with bound:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(bound.getsockname(), timeout=10)
        bound.listen()
        socket.create_connection(bound.getsockname(), timeout=10).close()


def test_bound_address_is_reserved_before_the_server_listens() -> None:
    """A second service that starts while the first one loads its model gets the error, and not the port."""
    [bound] = bind_sockets("127.0.0.1", 0)
    with bound:
        port = bound.getsockname()[1]
        with pytest.raises(AddressUnavailableError, match=f"127.0.0.1:{port}: .* in use; .* --port 0"):
            bind_sockets("127.0.0.1", port)


def test_server_can_listen_again_while_old_connections_are_being_closed() -> None:
    """A restart does not wait for the connections of the previous process."""
    [bound] = bind_sockets("127.0.0.1", 0)
    address = bound.getsockname()
    with bound, socket.socket() as client:
        allow_rebinding([bound])
        bound.listen()
        client.connect(address)
        connection, _ = bound.accept()
        connection.close()  # the side that closes first waits longest, in TIME_WAIT
        assert client.recv(1) == b""
    [again] = bind_sockets(*address)
    with again:
        allow_rebinding([again])
        again.listen()
        socket.create_connection(address, timeout=10).close()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", {"127.0.0.1", "::1"}),
        ("::", {"0.0.0.0", "::"}),
        ("", {"0.0.0.0", "::"}),
        ("0.0.0.0", {"0.0.0.0"}),
        ("::1", {"::1"}),
    ],
)
def test_all_addresses_of_a_host_are_bound_to_the_same_port(host: str, expected: set[str]) -> None:
    """`::` is all addresses of IPv4 and IPv6; addresses of a family that the machine lacks are left out."""
    if host == "::1" and not has_ipv6():
        pytest.skip("needs IPv6")
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(bound)) for bound in bind_sockets(host, 0)]
        bound_addresses = {bound.getsockname()[0] for bound in sockets}
        assert bound_addresses <= expected
        assert bound_addresses == expected or host == "localhost" or not has_ipv6()  # /etc/hosts may lack ::1
        assert len({bound.getsockname()[1] for bound in sockets}) == 1


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("192.0.2.1", r"192\.0\.2\.1:0: this machine does not have the address; --host ::"),
        ("a..b", r"cannot resolve the host 'a\.\.b'.*--host 127\.0\.0\.1"),
        ("name.invalid", r"cannot resolve the host 'name\.invalid'"),
    ],
)
def test_address_of_another_machine_is_an_error(host: str, message: str) -> None:
    """The message has the host and what to use instead."""
    with pytest.raises(AddressUnavailableError, match=message):
        bind_sockets(host, 0)
