"""`resnet-service serve` as a process: its address, and the exit status of a service that cannot start."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from monitoring.local import free_port
from resnet_service.errors import MissingDependencyError
from resnet_service.runtimes import selection
from resnet_service.server import rpc
from resnet_service.server.state import build_app_state
from resnet_service.settings import Settings
from tests.support.file_server import FileServer
from tests.support.processes import COMMAND, environment, rejected, started
from tests.support.server import has_ipv6

_UNPRIVILEGED_PORTS = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


def has_privileged_ports() -> bool:
    """Whether this process needs a permission for ports below 1024, and does not have it."""
    return (
        os.geteuid() != 0
        and _UNPRIVILEGED_PORTS.is_file()
        and int(_UNPRIVILEGED_PORTS.read_text(encoding="ascii")) >= 1024
    )


def test_port_in_use_exits_with_status_1(file_server: FileServer) -> None:
    """This happens before the model loads: no weights are downloaded. The message says what to do."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        weights = ("--model", "resnet18", "--weights", f"{file_server.url}/net.pth")
        message = rejected(*weights, "--port", port, status=1)
    assert f"127.0.0.1:{port}: the address is already in use" in message
    assert "--port 0" in message
    assert file_server.requests == []


@pytest.mark.parametrize("host", ["192.0.2.1", "a..b"])
def test_host_of_another_machine_exits_with_status_1(host: str) -> None:
    """An address or a name that is not of this machine is reported with an alternative."""
    message = rejected("--host", host, "--port", "0", status=1)
    assert host in message
    assert "--host ::" in message


@pytest.mark.skipif(not has_privileged_ports(), reason="this process may bind every port")
def test_port_that_needs_a_permission_exits_with_status_1() -> None:
    """The message says which ports need none."""
    message = rejected("--port", "80", status=1)
    assert "127.0.0.1:80: permission denied" in message
    assert "1024" in message


def test_address_is_reserved_while_the_model_loads() -> None:
    """Until the service is ready to serve, connections are rejected, and a second service gets status 1."""
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/net.pth"
        command = [*COMMAND, "--model", "resnet18", "--weights", url, "--port", str(port)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment()) as process:
            connection, _ = silent.accept()  # the download of the weights, which never ends
            with connection:
                with pytest.raises(httpx.ConnectError):
                    httpx.get(f"http://127.0.0.1:{port}/healthz")
                assert "in use" in rejected("--port", str(port), status=1)
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == -signal.SIGTERM


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_ipv6_address_serves_on_the_logged_port(jpeg: bytes) -> None:
    """Port 0 selects a free port, and the URL in the log has it."""
    with started("--host", "::1", "--port", "0") as (_, _, url):
        assert url.startswith("http://[::1]:")
        assert httpx.post(f"{url}/predict", files={"file": jpeg}).status_code == 200


def test_unavailable_model_exits_with_status_3(tmp_path: Path) -> None:
    """If the weights cannot be downloaded, the error message lists the alternatives."""
    message = rejected(
        *("--model", "resnet50", "--port", "0"),
        status=3,
        TORCH_HOME=str(tmp_path),
        https_proxy="http://127.0.0.1:9",
        no_proxy="",
    )
    assert "cannot load the model 'resnet50'" in message
    assert "--model cifar10" in message
    assert "--weights" in message


@pytest.mark.parametrize(
    "missing",
    ["opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"],
    ids=["sdk", "exporter"],
)
def test_incomplete_extra_for_traces_is_reported_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Other packages, such as Ray, install a part of the extra; the message is the same."""
    monkeypatch.setitem(sys.modules, missing, None)  # makes its import fail
    with pytest.raises(MissingDependencyError, match=r"make install EXTRAS=traces"):
        build_app_state(Settings(model="nonsense", traces_url="http://127.0.0.1:9"))


@pytest.mark.parametrize("missing", ["google.protobuf", "grpc", "grpc_health", "grpc_reflection"])
def test_incomplete_extra_for_grpc_is_reported_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Other packages install a part of the extra; the message is the same."""
    monkeypatch.setattr(rpc, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(MissingDependencyError, match=r"make install EXTRAS=grpc"):
        build_app_state(Settings(model="nonsense", grpc_port=8002))


def test_missing_openvino_is_reported_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the extra that has it."""
    monkeypatch.setattr(selection, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"make install EXTRAS=openvino"):
        build_app_state(Settings(model="nonsense", device="cpu", runtime="openvino"))


def test_collector_whose_name_is_unknown_is_named_before_the_model_is_loaded() -> None:
    """The service starts without it, because the name may exist later."""
    with started("--traces-url", "http://collector.invalid:4318/v1/traces"):
        pass
    command = [*COMMAND, "--model", "nonsense", "--port", "0", "--traces-url", "http://collector.invalid/"]
    output = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment(), check=False).stderr
    warning, error, *_ = output.splitlines()  # further lines are the alternatives to the model
    assert "collector_not_resolved" in warning
    assert "collector.invalid" in warning
    assert error.startswith("resnet-service: cannot load the model 'nonsense'")


def test_unavailable_device_exits_with_status_3() -> None:
    """A requested device that does not exist stops the start, and the error message names it."""
    message = rejected("--model", "cifar10", "--device", "cuda:99", status=3)
    assert "cuda" in message


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--port", "http"], "--port http: "),
        (["--max-batch", "0"], "--max-batch 0: "),
        (["--max-megapixels", "inf"], "--max-megapixels inf: "),
        (["--precision", "int3"], "--precision int3: "),
        (["--traces-url", "localhost:4318"], "--traces-url localhost:4318: "),
        (["--traces-url", "http://collector:99999"], "--traces-url http://collector:99999: "),
        (["--unknown-option", "1"], "--unknown-option"),
        (["--cors-origins", "example.org"], "did you mean 'https://example.org'?"),
        (["--public-scopes", "all"], "public_scopes: 'all'"),
        (["--api-keys-file", "missing"], "cannot read the API keys from missing"),
    ],
)
def test_invalid_setting_exits_with_status_2(flags: list[str], text: str) -> None:
    """An invalid setting is a usage error that has the setting and its value."""
    assert text in rejected("--port", "0", *flags, status=2)


def test_invalid_environment_variable_exits_with_status_2() -> None:
    """A value from the environment is reported with the name of the variable."""
    message = rejected(status=2, RESNET_SERVICE_MAX_QUEUE="none")
    assert "RESNET_SERVICE_MAX_QUEUE=none: " in message


def test_unknown_environment_variable_exits_with_status_2() -> None:
    """A misspelled variable is reported with the name that was probably meant, and without its value."""
    message = rejected(status=2, RESNET_SERVICE_API_KEYZ="a-secret-api-key")
    assert "unknown environment variable RESNET_SERVICE_API_KEYZ" in message
    assert "did you mean RESNET_SERVICE_API_KEYS?" in message
    assert "a-secret-api-key" not in message


def test_invalid_api_key_exits_with_status_2() -> None:
    """The message has the number of the key, and not the key."""
    message = rejected("--port", "0", status=2, RESNET_SERVICE_API_KEYS="too-short")
    assert "API key 1 has fewer than 16" in message
    assert "too-short" not in message


def test_option_overrides_environment_variable(tmp_path: Path) -> None:
    """A setting is taken from the environment unless the command line has it."""
    message = rejected(
        "--model", str(tmp_path / "flag.safetensors"), status=3, RESNET_SERVICE_MODEL="variable"
    )
    assert "flag.safetensors" in message
    assert "variable" not in message
    assert "variable" in rejected(status=3, RESNET_SERVICE_MODEL="variable")
