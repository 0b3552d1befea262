"""The health check of the container images follows the settings of the address; real servers."""

import subprocess
import sys

import pytest

from resnet_service.settings import Settings
from tests.support.processes import environment
from tests.support.server import has_ipv6, serving

HOSTS = ["127.0.0.1", "0.0.0.0", "localhost", "::", "::1"]


def run_healthcheck(**variables: str) -> tuple[int, str]:
    """Return the exit status of the health check, and what it prints."""
    result = subprocess.run(
        [sys.executable, "-m", "resnet_service.healthcheck"],
        env=environment(**variables),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    return result.returncode, result.stderr


@pytest.mark.parametrize("host", HOSTS)
def test_healthcheck_finds_the_service_at_every_kind_of_host(host: str) -> None:
    """All addresses, one address, or a name; at the main port, or at the management port if it is on."""
    if host == "::1" and not has_ipv6():
        pytest.skip("needs IPv6")
    with serving(Settings(model="cifar10", host=host)) as server:
        port = server.url.rpartition(":")[2]
        for variables in (
            {"RESNET_SERVICE_PORT": port, "RESNET_SERVICE_MANAGEMENT_PORT": "0"},
            {"RESNET_SERVICE_PORT": "1", "RESNET_SERVICE_MANAGEMENT_PORT": port},
            {"resnet_service_port": port, "RESNET_SERVICE_MANAGEMENT_PORT": "00"},
        ):
            assert run_healthcheck(RESNET_SERVICE_HOST=host, **variables) == (0, "")
    status, reason = run_healthcheck(RESNET_SERVICE_HOST=host, RESNET_SERVICE_PORT=port)
    assert status == 1
    assert reason.startswith("not ready: ")
    assert f"port {port}" in reason


def test_healthcheck_uses_the_default_for_an_empty_host() -> None:
    """An empty variable is like none, as for the service."""
    with serving(Settings(model="cifar10")) as server:
        port = server.url.rpartition(":")[2]
        assert run_healthcheck(RESNET_SERVICE_HOST="", RESNET_SERVICE_PORT=port) == (0, "")


def test_healthcheck_does_not_ask_another_address() -> None:
    """A service at one address is not healthy because of another one at the same port."""
    with serving(Settings(model="cifar10", host="127.0.0.1")) as server:
        port = server.url.rpartition(":")[2]
        assert run_healthcheck(RESNET_SERVICE_HOST="127.0.0.2", RESNET_SERVICE_PORT=port)[0] == 1


@pytest.mark.parametrize("port", ["http", "70000"])
def test_healthcheck_with_an_invalid_port_prints_one_line(port: str) -> None:
    """The service does not start with it either."""
    status, reason = run_healthcheck(RESNET_SERVICE_PORT=port)
    assert (status, reason.count("\n")) == (1, 1)
